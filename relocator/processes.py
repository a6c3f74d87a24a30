"""Processes that belong to this one: none of them outlives it, however it ends."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, cast

from relocator.errors import RelocatorError

READY_S = 30.0
_END_S = 5.0
_LINES = 12


class Process:
    """A running command. `dies_by` is what it gets if this process is killed.

    What it prints goes to `log`, or, until it has ended, to a file of its own.
    """

    def __init__(
        self,
        argv: Sequence[str],
        dies_by: str,
        log: IO[bytes] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = argv[0]
        self._own = tempfile.TemporaryFile("w+b") if log is None else None  # noqa: SIM115
        self._log = log or cast("IO[bytes]", self._own)
        try:
            self.popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", dies_by, "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise RelocatorError(f"{argv[0]} can't be started: {error.strerror}") from error

    def await_ready(self, ready: Callable[[], bool], patience_s: float = READY_S) -> None:
        """Poll until `ready`.

        Raises:
            RelocatorError: it ended, or isn't ready in time; with the last of what it said.
        """
        give_up_s = time.monotonic() + patience_s
        while not ready():
            if self.popen.poll() is not None:
                raise RelocatorError(f"{self.name} ended: {self.last_words()}")
            if time.monotonic() > give_up_s:
                raise RelocatorError(
                    f"{self.name} is not ready after {patience_s:g} s: {self.last_words()}"
                )
            time.sleep(0.05)

    def last_words(self) -> str:
        """The end of the log."""
        fd = self._log.fileno()  # to seek would change where the process writes next
        said = os.pread(fd, os.fstat(fd).st_size, 0)
        lines = said.decode(errors="replace").strip().split("\n")
        return " | ".join(lines[-3:]) or "without a word"

    def end(self) -> None:
        """Ask it, and what it started, to end, and kill them if they don't."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGTERM)
        self.wait()

    def wait(self) -> None:
        """Wait for its end, kill it if that doesn't come, and what it started that is left."""
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(_END_S)
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        if self._own is not None:
            self._own.close()


def run(
    argv: Sequence[str],
    environment: Mapping[str, str] | None = None,
    patience_s: float = READY_S,
) -> str:
    """What the command printed.

    Raises:
        RelocatorError: it failed.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            timeout=patience_s,
            check=False,
        )
    except OSError as error:
        raise RelocatorError(f"{argv[0]} can't be started: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise RelocatorError(f"{argv[0]}: not done after {patience_s:g} s") from error
    if done.returncode:
        said = "\n".join(done.stdout.strip().splitlines()[-_LINES:])
        raise RelocatorError(f"{' '.join(argv[:8])}: exit status {done.returncode}: {said}")
    return done.stdout
