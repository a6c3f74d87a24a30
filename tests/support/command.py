"""The command `relocator`, run as its users run it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def relocator(*arguments: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    """`relocator ARGUMENTS`."""
    command = [sys.executable, "-m", "relocator.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@contextmanager
def started(*arguments: str, **streams: int) -> Iterator[subprocess.Popen[str]]:
    """`relocator ARGUMENTS` in the background, ended at the end of the block."""
    command = [sys.executable, "-m", "relocator.cli.main", *arguments]
    process = subprocess.Popen(command, text=True, **streams)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
