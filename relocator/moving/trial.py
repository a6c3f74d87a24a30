"""A throwaway copy of disks in standby, to boot a guest from before the real one moves.

The copy is what the disks were at *one instant*: that of an epoch at which nothing was stale any
more. A refresh says so: all blocks are there, and none has been written at the source since the
refresh before. A guest that writes all the time leaves no such instant; then its QEMU is stopped
for as long as the last blocks take, or until that is too long: then it goes on, without a trial.

From then on the background copy is paused, so the image stands still: in standby nothing else
writes to it. It is served through nbdkit's cow filter, which keeps what is written in a temporary
file; the image is opened read-only. Should a disk be activated meanwhile, the trial is over.

The pause ends with the trial: if this process is killed, a guard (guard.py) lets the copy go on.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relocator.errors import RelocatorError
from relocator.moving.ends import PATIENCE_S, Disk, of_all
from relocator.moving.guard import Guard
from relocator.moving.monitor import Monitor
from relocator.moving.still import still
from relocator.processes import Process
from relocator.signals import uninterrupted

LOOK_EVERY_S = 0.2
READY_S = 10.0
#: how long the guest may stand still, unless given
STILL_S = 30.0
_MOMENT_S = 0.2
_TOO_LONG = (
    "not all of the disks could be copied in time: give more (--timeout), or let the "
    "guest be stopped for the last blocks (--from QMP)"
)


@dataclass(frozen=True)
class Limit:
    """Until when something may take, by the monotonic clock, and what is said else."""

    at_s: float
    why: str

    def check(self) -> None:
        """RelocatorError if it has been reached."""
        if time.monotonic() > self.at_s:
            raise RelocatorError(self.why)

    @property
    def patience_s(self) -> float:
        """How long an answer may take; at least a moment."""
        return min(PATIENCE_S, max(_MOMENT_S, self.at_s - time.monotonic()))


@dataclass(frozen=True)
class Guest:
    """The real one, that is stopped for the last blocks, for `still_s` at most."""

    monitor: Monitor
    guard: Guard
    still_s: float = STILL_S

    def limit(self) -> Limit:
        """Until when, if it is stopped now."""
        why = (
            f"the guest stood still for {self.still_s:g} s, and not all was here yet; it goes on. "
            "Try when the link is quieter, or let it stand still for longer (--still)"
        )
        return Limit(time.monotonic() + self.still_s, why)


@contextmanager
def caught_up(
    disks: Sequence[Disk], guest: Guest | None, timeout_s: float, guard: Guard
) -> Iterator[list[int]]:
    """Copy until nothing is stale; yields the epoch at which that was so, of each disk's source.

    `guest` is stopped for the last of it, and goes on afterwards. Within the block no disk is
    copied; after it all are, `guard` sees to it.

    Raises:
        RelocatorError: a disk is not in standby, or the guest writes faster than is copied.
    """
    for disk in disks:
        status = disk.call("status")
        if status["state"] != "standby":
            raise RelocatorError(f"disk {disk.name}: is {status['state']}, not in standby")
        if status["background"] != "on":
            disk.call("set", background="on")
            disk.call("resume")
    limit = Limit(time.monotonic() + timeout_s, _TOO_LONG)
    _all_here(disks, limit)
    _refresh(disks, limit)
    _all_here(disks, limit)
    with _copying_after(disks, guard):
        with _stopped(guest, limit) as last:
            while _refresh(disks, last) or not _here(disks, last):
                last.check()
                _all_here(disks, last)
            epochs = of_all(disks, lambda disk: _epoch(disk, last))
            for disk in disks:
                disk.call("pause", last.patience_s)
        yield epochs


@contextmanager
def _copying_after(disks: Sequence[Disk], guard: Guard) -> Iterator[None]:
    """The disks may be paused within the block, and are not after it, whatever ends that."""
    guard.watch()
    try:
        yield
    finally:
        with uninterrupted():
            copy_on(disks)
            guard.at_rest()


def copy_on(disks: Sequence[Disk]) -> None:
    """Let the background copy of the disks go on; a plugin that has ended has forgotten its pause.

    One that only doesn't answer in time is told all the same.
    """

    def of_one(disk: Disk) -> None:
        with suppress(RelocatorError):
            disk.call("resume")

    of_all(disks, of_one)


@contextmanager
def _stopped(guest: Guest | None, limit: Limit) -> Iterator[Limit]:
    """The guest stands still within the block; yields until when that may take."""
    if guest is None:
        yield limit
        return
    with still(guest.monitor, guest.guard) as stopped:
        last = guest.limit() if stopped else limit
        try:
            yield last
        except RelocatorError:
            last.check()  # why nobody had the time to answer
            raise


def _epoch(disk: Disk, limit: Limit) -> int:
    return int(disk.call("identify", limit.patience_s)["base"]["epoch"])


def _refresh(disks: Sequence[Disk], limit: Limit) -> int:
    """How many blocks were stale."""

    def of_one(disk: Disk) -> int:
        return int(disk.call("refresh", limit.patience_s)["refreshed_blocks"])

    return sum(of_all(disks, of_one))


def _here(disks: Sequence[Disk], limit: Limit) -> bool:
    states = of_all(disks, lambda disk: disk.call("status", limit.patience_s))
    return all(state["present_blocks"] == state["total_blocks"] for state in states)


def _all_here(disks: Sequence[Disk], limit: Limit) -> None:
    while not _here(disks, limit):
        limit.check()
        time.sleep(LOOK_EVERY_S)


class Trial:
    """Servers of throwaway copies, on sockets in `directory`, named after the disks."""

    def __init__(self, disks: Sequence[Disk], directory: Path) -> None:
        self._disks = disks
        self._directory = directory
        self._servers: list[Process] = []

    def socket(self, disk: Disk) -> Path:
        """Where the copy of a disk is served."""
        return self._directory / f"{disk.name}.try"

    @contextmanager
    def served(self) -> Iterator[None]:
        """The copies are served within the block."""
        try:
            for disk in self._disks:
                self._start(disk, disk.call("status"))
            yield
        finally:
            self._end()

    def watch(self) -> None:
        """Look on until the trial is over; never returns.

        Raises:
            RelocatorError: a disk is no longer in standby, or a server has ended.
        """
        while True:
            for disk, server in zip(self._disks, self._servers, strict=True):
                if server.popen.poll() is not None:
                    raise RelocatorError(f"disk {disk.name}: the copy's server has ended")
                status = disk.call("status")
                if status["state"] != "standby":
                    raise RelocatorError(
                        f"disk {disk.name}: is {status['state']} now, so the trial is over"
                    )
            time.sleep(LOOK_EVERY_S)

    def _start(self, disk: Disk, status: dict[str, Any]) -> None:
        path = self.socket(disk)
        path.unlink(missing_ok=True)
        argv = ["nbdkit", "-f", "-U", str(path), "--filter=cow", "--filter=offset"]
        argv += ["file", status["image"], "offset=0", f"range={status['size_bytes']}"]
        server = Process(argv, "KILL")
        self._servers.append(server)
        try:
            server.await_ready(path.exists, READY_S)
        except RelocatorError as error:
            raise RelocatorError(f"disk {disk.name}: the copy can't be served: {error}") from error

    def _end(self) -> None:
        for server in self._servers:
            server.popen.kill()  # there is nothing to be kept
            server.wait()
        for disk in self._disks:
            self.socket(disk).unlink(missing_ok=True)
