"""One run directly on this kernel, made to look like a run in the VM.

The program is a child in a session of its own: Ctrl-C reaches only us. We interrupt it, so that it
can take its network name spaces and devices down, and kill its process group if it doesn't.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from testbed.lab.payload import PROJECT
from testbed.lab.vm import TIMEOUT_STATUS

POLL_S = 0.2
TAKE_DOWN_S = 15.0


def run(
    arguments: Sequence[str],
    *,
    seed: int,
    out: Path,
    timeout_s: float,
    stdout: BinaryIO,
    files: Mapping[str, Path] | None = None,
    project: Path | None = None,
) -> int:
    """Runs `python3 -m ARGUMENTS...` in the project's directory; its exit status.

    `project` is the directory of another project than ours.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="relocator-files-") as copies:
        for name, path in (files or {}).items():
            shutil.copyfile(path, Path(copies) / name)
        told = _told(seed, out, Path(copies), project)
        return _run(arguments, told, timeout_s, stdout, project or PROJECT)


def _told(seed: int, out: Path, files: Path, project: Path | None) -> dict[str, str]:
    path = os.environ.get("PYTHONPATH")
    theirs = [] if project is None else [str(project), str(project / "src")]
    return {
        "LAB_OUT": str(out.resolve()),
        "LAB_FILES": str(files),
        "LAB_CLOCK": "native",
        "LAB_SEED": str(seed),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([str(PROJECT), *theirs, *([path] if path else [])]),
    }


def _run(
    arguments: Sequence[str],
    told: Mapping[str, str],
    timeout_s: float,
    stdout: BinaryIO,
    directory: Path,
) -> int:
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=directory,
        env={**os.environ, **told},
        start_new_session=True,
    )
    try:
        in_time = _follow(process, stdout, time.monotonic() + timeout_s)
    finally:
        _end(process)
    if not in_time:
        print(f"lab: ended after {timeout_s:g} s (--timeout)", file=sys.stderr)
        return TIMEOUT_STATUS
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _follow(process: subprocess.Popen[bytes], stdout: BinaryIO, deadline_s: float) -> bool:
    """Copies the program's output until it has ended; False if the deadline came first."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    while True:
        # In this order: what was printed before the program ended is in the pipe by now. A daemon
        # it left running may hold the pipe open, so its end is not what we wait for.
        ended = process.poll() is not None
        while select.select([pipe], [], [], 0 if ended else POLL_S)[0]:
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                break
            stdout.write(chunk)
            stdout.flush()
        if ended:
            return True
        if time.monotonic() > deadline_s:
            return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=TAKE_DOWN_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.stdout is not None
    process.stdout.close()
