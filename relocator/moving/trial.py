"""A throwaway copy of disks in standby, to boot a guest from before the real one moves.

The copy is what the disks were at *one instant*: that of an epoch at which nothing was stale any
more. A refresh says so: all blocks are there, and none has been written at the source since the
refresh before. A guest that writes all the time leaves no such instant; then its QEMU is stopped
for as long as the last blocks take.

From then on the background copy is paused, so the image stands still: in standby nothing else
writes to it. It is served through nbdkit's cow filter, which keeps what is written in a temporary
file; the image is opened read-only. Should a disk be activated meanwhile, the trial is over.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from relocator.errors import RelocatorError
from relocator.moving.ends import Disk, of_all
from relocator.moving.monitor import Monitor
from relocator.processes import Process

LOOK_EVERY_S = 0.2
READY_S = 10.0


def catch_up(disks: Sequence[Disk], guest: Monitor | None, timeout_s: float) -> list[int]:
    """Copy until nothing is stale; returns the epoch at which that was so, of each disk's source.

    `guest` is stopped for the last of it, and goes on afterwards.

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
    give_up_s = time.monotonic() + timeout_s
    _all_here(disks, give_up_s)
    _refresh(disks)
    _all_here(disks, give_up_s)
    with _stopped(guest):
        while _refresh(disks) or not _here(disks):
            _all_here(disks, give_up_s)
        epochs = of_all(disks, lambda disk: int(disk.call("identify")["base"]["epoch"]))
        for disk in disks:
            disk.call("pause")
    return epochs


def _refresh(disks: Sequence[Disk]) -> int:
    """How many blocks were stale."""
    return sum(of_all(disks, lambda disk: int(disk.call("refresh")["refreshed_blocks"])))


def _here(disks: Sequence[Disk]) -> bool:
    states = of_all(disks, lambda disk: disk.call("status"))
    return all(state["present_blocks"] == state["total_blocks"] for state in states)


def _all_here(disks: Sequence[Disk], give_up_s: float) -> None:
    while not _here(disks):
        if time.monotonic() > give_up_s:
            raise RelocatorError(
                "not all of the disks could be copied in time: give more (--timeout), or let the "
                "guest be stopped for the last blocks (--from QMP)"
            )
        time.sleep(LOOK_EVERY_S)


@contextmanager
def _stopped(guest: Monitor | None) -> Iterator[None]:
    """The guest stands still within the block."""
    if guest is None or not guest.call("query-status")["running"]:
        yield
        return
    guest.call("stop")
    try:
        yield
    finally:
        guest.call("cont")


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
        """The copies are served within the block; afterwards the disks are copied on."""
        with ExitStack() as ends:
            for disk in self._disks:
                ends.callback(_copy_on, disk)
                self._start(disk, disk.call("status"))
            ends.callback(self._end)
            yield

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


def _copy_on(disk: Disk) -> None:
    with suppress(RelocatorError):
        disk.call("resume")
