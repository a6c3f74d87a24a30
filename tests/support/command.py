"""The command `relocator`, run as its users run it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).parents[2]
#: what else is 10 s to connect, 30 s for an answer and for the seals that are waited for, 20 s to
#: arrive or to freeze, 5 s to first read and for a late seal
_SOONER = """
from relocator.moving import back, freezing, monitor, steps

monitor.CONNECT_S, freezing.PATIENCE_S = 3.0, 3.0
steps.ARRIVE_S, steps.SEAL_S, steps.FIRST_IO_S, back.LATE_S = 5.0, 2.0, 0.5, 1.0
monitor.Monitor.call.__defaults__ = monitor.Monitor.call_until.__defaults__ = (5.0,)
"""

_NEVER = """
from relocator.moving import back, monitor

back.LATE_S = 60.0
monitor.Monitor.call.__defaults__ = monitor.Monitor.call_until.__defaults__ = (600.0,)
"""


#: SIGINT, and a moment in which Python hears it
_INTERRUPTED = """
import os, signal
from relocator.moving.downtime import Clocks

note = Clocks.note
def interrupted(self, what):
    note(self, what)
    if what == "released":
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
Clocks.note = interrupted
"""


def impatient(directory: Path) -> dict[str, str]:
    """An environment in which a move and its guard wait less for a QEMU, an agent and a guest.

    For what comes after that, however long it was.
    """
    return _with(directory / "impatient", _SOONER)


def patient(directory: Path) -> dict[str, str]:
    """An environment in which a move waits for a QEMU's answer without end, if it waits at all.

    And a minute for a proxy that is to come back.
    """
    return _with(directory / "patient", _NEVER)


def interrupted(directory: Path) -> dict[str, str]:
    """An environment in which a move is interrupted as soon as it has released its disks."""
    return _with(directory / "interrupted", _INTERRUPTED)


def _with(place: Path, code: str) -> dict[str, str]:
    """An environment in which each Python begins with `code`, on this project's relocator.

    That is imported before the directory that Python is started in is on its path.
    """
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(code)
    places = (str(place), str(PROJECT), os.environ.get("PYTHONPATH"))
    path = os.pathsep.join(filter(None, places))
    return os.environ | {"PYTHONPATH": path}


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


def catches(process: "subprocess.Popen[str]", number: int) -> bool:
    """Whether the process has a handler for a signal."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)
