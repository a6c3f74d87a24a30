"""`relocator proxy --graduate`: the proxy until the disk is complete, then a plain `nbdkit file`.

This process owns the listening sockets and starts one server after the other, which inherit them.
A client that connects in between waits in the sockets' queue; one that is connected loses its
connection and must come back by itself.

Nothing acknowledged is lost when the proxy is killed: what it acknowledged is in the page cache,
what it flushed is on the disk, and complete means that the image alone is the disk. A request
without an answer is repeated by the client. SIGTERM wouldn't do: nbdkit then waits for its clients.
If the disk can't graduate after all, the proxy serves on, or again; it is tried again later.

A server never outlives this process, nor this process its server: a guard, a process of its own,
kills the server if this process ends first. (PR_SET_PDEATHSIG won't do: an nbdkit that inherits its
sockets sets it to SIGTERM, and then waits for its clients.) SIGTERM, SIGINT and SIGHUP (unless
nohup ignores that) take the address away, ask the server to end, and pass on its exit status;
nbdkit ends when its clients have gone. Signals are blocked and taken by `sigtimedwait`: no handler
runs anywhere.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from relocator import signals
from relocator.cli.launch import become
from relocator.cli.listening import Address, inherit
from relocator.client import Client
from relocator.errors import RelocatorError, StateError
from relocator.running.control import ControlServer
from relocator.running.graduation import Graduated, graduate
from relocator.running.readiness import notify

T = TypeVar("T")
LOOK_EVERY_S = 0.25
_PATIENCE_S = 10.0
_GRACE_S = 0.2
AGAIN_S, MOST_AGAIN_S = 60.0, 3600.0
_CANT_EXEC = 127


@dataclass(frozen=True)
class Plan:
    """What to start: nbdkit with its options, our plugin with its parameters, and where."""

    address: Address
    nbdkit: list[str]
    plugin: list[str]
    store: Path
    disk: Path | None
    control: Path

    @property
    def proxy(self) -> list[str]:
        """The command that serves the disk while it is relocated."""
        return [*self.nbdkit, *self.plugin]

    def plain(self, disk: Graduated) -> list[str]:
        """The command that serves the graduated disk."""
        path, size_bytes = str(disk.image.path), disk.meta.size_bytes
        if not disk.exceeds:
            return [*self.nbdkit, "file", path]
        return [*self.nbdkit, "--filter=offset", "file", path, "offset=0", f"range={size_bytes}"]


def supervise(plan: Plan) -> int:
    """Serve until the server ends; returns its exit status, 128 + N if signal N ended it.

    Raises:
        RelocatorError: the address can't be listened on, or the store can't be used.
    """
    asking = signals.ending()
    signal.pthread_sigmask(signal.SIG_BLOCK, asking | {signal.SIGCHLD})
    sockets = plan.address.listen()
    try:
        return _Supervisor(plan, sockets, asking).run()
    finally:
        plan.address.forget()


class _Supervisor:
    def __init__(
        self, plan: Plan, sockets: list[socket.socket], asking: frozenset[signal.Signals]
    ) -> None:
        self._plan = plan
        self._sockets = sockets
        self._asking = asking
        self._signals = asking | {signal.SIGCHLD}
        self._pid = self._guard_pid = 0
        self._ending = False
        self._not_before_s = 0.0
        self._again_s = AGAIN_S

    def run(self) -> int:
        """One server after the other."""
        control: ControlServer | None = None
        disk = graduate(self._plan.store, self._plan.disk)
        while disk is None:
            if control is not None:  # sealed in the last moment, or it can't graduate yet
                control.stop()
            self._start(self._plan.proxy)
            control = None
            while control is None:
                status = self._wait(until_complete=True)
                if status is not None:
                    return status
                control = self._later(self._end_proxy)
            disk = self._later(lambda: graduate(self._plan.store, self._plan.disk))
        control = control or ControlServer(self._plan.control, disk.call)
        self._start(self._plan.plain(disk), disk.lock_fds)
        control.call = disk.call
        control.start()
        notify()  # that server tells nobody, and its sockets take clients already
        print(f"relocator: complete; nbdkit file serves {disk.image.path}", file=sys.stderr)
        try:
            return self._wait(until_complete=False) or 0
        finally:
            control.stop()

    def _later(self, step: Callable[[], T]) -> T | None:
        """What a step of the graduation gives; None if it fails: then a proxy is to serve."""
        try:
            return step()
        except (RelocatorError, OSError) as error:
            print(
                f"relocator: the disk can't graduate: {error}; the proxy serves on, and it is "
                f"tried again in {self._again_s:.0f} s",
                file=sys.stderr,
            )
            self._not_before_s = time.monotonic() + self._again_s
            self._again_s = min(2 * self._again_s, MOST_AGAIN_S)  # each time cuts off all clients
            return None

    def _start(self, argv: list[str], locks: Sequence[int] = ()) -> None:
        """Start a server with the sockets, and its guard; `locks` stay held until it ends."""
        self._pid = os.fork()
        if self._pid == 0:
            try:
                inherit(self._sockets, locks)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
                become(argv)
            except RelocatorError as error:
                print(f"relocator: {error}", file=sys.stderr)
            finally:
                os._exit(_CANT_EXEC)
        supervisor = os.getpid()
        self._guard_pid = os.fork()
        if self._guard_pid == 0:
            try:
                _guard(self._pid, supervisor)
            finally:
                os._exit(0)

    def _wait(self, *, until_complete: bool) -> int | None:
        """The exit status of the server; None if it serves on and the disk is complete."""
        while True:
            caught = signal.sigtimedwait(self._signals, LOOK_EVERY_S)
            if caught is not None and caught.si_signo in self._asking:
                self._ask_to_end()
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                os.waitpid(self._guard_pid, 0)
                code = os.waitstatus_to_exitcode(status)
                if self._ending and code == -signal.SIGTERM:
                    return 0  # it was asked to end before it could handle the signal
                return code if code >= 0 else 128 - code
            may_end = until_complete and not self._ending
            if may_end and time.monotonic() >= self._not_before_s and self._is_complete():
                return None

    def _ask_to_end(self) -> None:
        self._ending = True
        for one in self._sockets:
            one.close()
        self._plan.address.forget()
        os.kill(self._pid, signal.SIGTERM)

    def _is_complete(self) -> bool:
        """Whether the disk is complete, with little left to be written to the store's disk."""
        client = Client(self._plan.control)
        try:
            if client.call("status", _PATIENCE_S)["state"] != "complete":
                return False
            client.call("flush", None)
            return True
        except RelocatorError:  # it starts, or ends, which `_wait` will see, or can't flush
            return False

    def _end_proxy(self) -> ControlServer:
        """Kill the proxy; whoever asks the control socket meanwhile waits for an answer.

        Who has asked the proxy already is given the time to be answered.
        """
        control = ControlServer(self._plan.control, _no_answer, replacing=True)
        time.sleep(_GRACE_S)
        os.kill(self._pid, signal.SIGKILL)
        for pid in (self._pid, self._guard_pid):
            os.waitpid(pid, 0)
        return control


def _no_answer(verb: str, _arguments: dict[str, Any]) -> dict[str, Any]:
    raise StateError(f"'{verb}' is refused: no server has started yet")


def _guard(server_pid: int, supervisor_pid: int) -> None:
    """Return when the server has ended; kill it as soon as the supervisor has, also by now.

    Runs in a process of its own, which holds nothing that the others hold.
    """
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    server = os.pidfd_open(server_pid)
    try:
        supervisor = os.pidfd_open(supervisor_pid)
        if os.getppid() == supervisor_pid:  # else its pid may be another's by now
            select.select([server, supervisor], [], [])
    finally:
        signal.pidfd_send_signal(server, signal.SIGKILL)
