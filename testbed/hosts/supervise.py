"""Processes that the test bed owns, and network namespaces they run in.

Whatever is started here is ended here: by its own pid, in reverse order, also when something
failed. A process that ends by itself before it should is an error that shows its command, its
exit status and the last lines of its log. Nothing passes through a shell.

A network namespace is named by the pid of a process that lives in it (Mininet keeps one for each
host). Only the network differs between our processes: they share mounts, so that a device
attached in one host's namespace can be mounted and used by the guest, who lives in none of them.
"""

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from relocator import processes
from relocator.cli.launch import environment
from relocator.errors import RelocatorError

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_LOG_LINES = 12


class ProcessError(RuntimeError):
    """A command failed, or a process ended or hung when it should not have."""


def log_tail(path: Path) -> str:
    """The last lines of a log, indented, or a remark that it is empty."""
    lines = path.read_text(errors="replace").splitlines()[-_LOG_LINES:] if path.exists() else []
    return "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"


def in_namespace(pid: int, action: Callable[[], T]) -> T:
    """The result of `action`, run in a thread that has joined the network namespace of `pid`.

    A socket made there stays in that namespace, whoever uses it.
    """
    result: list[T] = []
    failure: list[BaseException] = []
    libc = ctypes.CDLL(None, use_errno=True)

    def run() -> None:
        try:
            with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
                if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns to the namespace of {pid}")
            result.append(action())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name=f"namespace of {pid}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _argv(argv: Sequence[str], namespace_pid: int | None) -> list[str]:
    if namespace_pid is None:
        return list(argv)
    return ["nsenter", f"--net=/proc/{namespace_pid}/ns/net", "--", *argv]


def run(argv: Sequence[str], namespace_pid: int | None = None, timeout_s: float = 120) -> str:
    """Runs a command to its end and returns what it printed; a failure shows the last of it."""
    try:
        return processes.run(_argv(argv, namespace_pid), patience_s=timeout_s)
    except RelocatorError as error:
        raise ProcessError(str(error)) from error


def wait_until(
    ready: Callable[[], bool], what: str, timeout_s: float, every_s: float = 0.01
) -> None:
    """Waits for a condition; `what` completes "still waiting for ..."."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise ProcessError(f"still waiting for {what} after {timeout_s:g} s")
        time.sleep(every_s)


def is_listening(namespace_pid: int, port: int) -> bool:
    """Whether a TCP socket listens on the port; looks without connecting."""
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{namespace_pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False


def is_listening_at(path: Path, pid: int) -> bool:
    """Whether a Unix socket listens at the path, in the network namespace of `pid`, which it was
    made in (whoever sees the path may connect); looks without connecting."""
    accepts = "00010000"  # __SO_ACCEPTCON: the name is there before anybody may connect
    lines = Path(f"/proc/{pid}/net/unix").read_text().splitlines()
    return any(line.endswith(f" {path}") and line.split()[3] == accepts for line in lines)


@dataclass(slots=True)
class Process:
    """A running process and its log."""

    name: str
    argv: list[str]
    log: Path
    popen: subprocess.Popen[bytes]
    stop_signal: signal.Signals = signal.SIGTERM
    good_statuses: tuple[int, ...] = (0, -signal.SIGTERM)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def _failure(self, what: str) -> ProcessError:
        return ProcessError(f"{self.name} {what}: {' '.join(self.argv)}\n{log_tail(self.log)}")

    def check(self) -> None:
        """Raises if the process has ended although nobody asked it to."""
        status = self.popen.poll()
        if status is not None:
            raise self._failure(f"ended by itself with exit status {status}")

    def wait_until(self, ready: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Waits for a condition, or for the process to end, which fails."""

        def alive_and_ready() -> bool:
            self.check()
            return ready()

        try:
            wait_until(alive_and_ready, what, timeout_s)
        except ProcessError as error:
            if self.popen.poll() is None:
                raise self._failure(f"not ready ({error})") from error
            raise

    def wait(self, timeout_s: float) -> None:
        """Waits for the process to end by itself, well."""
        try:
            status = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired as late:
            raise self._failure(f"still running after {timeout_s:g} s") from late
        if status not in self.good_statuses:
            raise self._failure(f"failed with exit status {status}")

    def stop(self, timeout_s: float = 30) -> None:
        """Asks the process to end and waits; one that won't is killed, which is an error."""
        if self.popen.poll() is None:
            self.popen.send_signal(self.stop_signal)
        try:
            self.wait(timeout_s)
        except ProcessError:
            if self.popen.poll() is None:
                self.popen.kill()
                self.popen.wait()
            raise


@dataclass(slots=True)
class Supervisor:
    """Starts processes and, on exit, ends those that still run, the last one first."""

    logs: Path
    processes: list[Process] = field(default_factory=list)

    def start(
        self,
        name: str,
        argv: Sequence[str],
        namespace_pid: int | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        good_statuses: tuple[int, ...] = (0, -signal.SIGTERM),
    ) -> Process:
        """Starts a process, also nbdkit under any Python; its output goes to `NAME.log`."""
        log = self.logs / f"{name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                _argv(argv, namespace_pid),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(os.environ | {"PYTHONUNBUFFERED": "1"}),
            )
        process = Process(name, list(argv), log, popen, stop_signal, good_statuses)
        self.processes.append(process)
        return process

    def check(self) -> None:
        """Raises if any process that should run has ended."""
        for process in self.processes:
            process.check()

    def stop(self, process: Process, timeout_s: float = 30) -> None:
        """Ends one process now."""
        self.processes.remove(process)
        process.stop(timeout_s)

    def cut_off(self, process: Process) -> None:
        """Ends one process as a power failure would, whatever it is doing."""
        self.processes.remove(process)
        process.check()
        process.popen.kill()
        process.popen.wait()

    def wait(self, process: Process, timeout_s: float) -> None:
        """Waits for a process that ends by itself."""
        self.processes.remove(process)
        process.wait(timeout_s)

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        failures = []
        while self.processes:
            try:
                self.processes.pop().stop(timeout_s=10)
            except ProcessError as failure:
                failures.append(failure)
        if failures and error is None:
            raise failures[0]
        for failure in failures:
            assert error is not None
            error.add_note(f"while ending what still ran: {failure}")
