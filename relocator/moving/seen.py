"""What is found at both ends of a move: two QEMUs, and for each disk a proxy and a source."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from relocator.errors import RelocatorError
from relocator.moving.ends import Disk, of_all
from relocator.moving.monitor import Monitor
from relocator.running.states import ALL_HERE, State


class SourceVm(StrEnum):
    """The QEMU that the guest comes from."""

    HOME = "home"  # it has the guest, and sends nothing
    SENDING = "sending"  # memory is sent, the guest runs
    PAUSED = "paused"  # the guest stands still, at QEMU's pause-before-switchover
    LAST = "last"  # the last of the guest's state is sent
    SENT = "sent"  # all was sent; this QEMU keeps what it had, and stands still
    GONE = "gone"  # it can't be reached: it has ended, or the way to it, or another client has it


class DestVm(StrEnum):
    """The QEMU that the guest goes to."""

    WAITING = "waiting"  # started with -incoming
    RECEIVING = "receiving"
    RUNS = "runs"  # the guest is here
    STOPPED = "stopped"  # the guest is here, and stands still
    GONE = "gone"


class Disks(StrEnum):
    """All proxies together."""

    STANDBY = "standby"  # all of them
    ARMED = "armed"  # those that can be reached hold their writes; no source is sealed
    HELD = "held"  # the same, with a source that is sealed
    PARTLY = "partly held"  # some have been given back
    RELEASED = "released"  # at least one: there is no way back
    COMPLETE = "complete"  # all, and every block is there
    UNKNOWN = "unknown"  # some can't be reached, the others are in standby


_SENDING = {"setup", "wait-unplug", "active", "postcopy-active", "postcopy-paused", "cancelling"}


@dataclass(frozen=True)
class DiskSeen:
    """One disk: its proxy's status and its source's identity, None for what can't be reached."""

    status: dict[str, Any] | None
    source: dict[str, Any] | None

    @property
    def standby(self) -> bool:
        """The proxy has not taken the disk over."""
        return self.status is not None and self.status["state"] == "standby"

    @property
    def held(self) -> bool:
        """The proxy has taken it over, but its writes wait for the release."""
        status = self.status
        return status is not None and status["state"] == "activating" and bool(status["held"])

    @property
    def given_back(self) -> bool:
        """The proxy has not taken it over, or no more: its seal was undone where nobody asked it.

        A proxy that was told that its source is sealed doesn't hear of that by itself.
        """
        status = self.status
        if status is None or not self.held:
            return self.standby
        asks_for = status.get("asks_for")  # an older server doesn't say
        if self.source is None or asks_for is None or self.source["seal"] == asks_for:
            return False
        return bool(status["seal_confirmed"])

    @property
    def sealed(self) -> bool:
        """The source lets no write pass any more."""
        if self.source is not None:
            return self.source["seal"] is not None
        return self.status is not None and bool(self.status["seal_confirmed"])

    @property
    def released(self) -> bool:
        """Writes pass at the proxy, or will by themselves."""
        if self.status is not None:
            return not self.standby and not self.held
        return self.source is not None and bool(self.source["moved"])

    @property
    def outdated(self) -> bool:
        """Its source was unsealed after it had been released: there are two versions."""
        return self.status is not None and self.status["state"] == State.OUTDATED

    @property
    def complete(self) -> bool:
        """The proxy needs its source no more."""
        return self.status is not None and self.status["state"] in ALL_HERE


@dataclass(frozen=True)
class Seen:
    """All that was found."""

    source: SourceVm
    destination: DestVm
    disks: tuple[DiskSeen, ...]

    @property
    def together(self) -> Disks:
        """What the disks are as one."""
        return together(self.disks)


def together(disks: Sequence[DiskSeen]) -> Disks:
    """What disks are as one."""
    if any(disk.released for disk in disks):
        return Disks.COMPLETE if all(disk.complete for disk in disks) else Disks.RELEASED
    if any(disk.held for disk in disks):
        if any(disk.given_back for disk in disks):
            return Disks.PARTLY
        return Disks.HELD if any(disk.sealed for disk in disks) else Disks.ARMED
    return Disks.STANDBY if all(disk.standby for disk in disks) else Disks.UNKNOWN


def source_vm(monitor: Monitor) -> SourceVm:
    """What the source's QEMU is doing."""
    try:
        status = monitor.call("query-status")["status"]
        migration = monitor.call("query-migrate").get("status")
    except RelocatorError:
        return SourceVm.GONE
    if migration == "pre-switchover":
        return SourceVm.PAUSED
    if migration == "device":
        return SourceVm.LAST
    if migration in _SENDING:
        return SourceVm.SENDING
    return SourceVm.SENT if status in ("postmigrate", "finish-migrate") else SourceVm.HOME


def was_sent(monitor: Monitor) -> bool:
    """Whether this QEMU has sent all of a guest; where one has come, it says no amounts."""
    try:
        told = monitor.call("query-migrate")
        return told.get("status") == "completed" and "ram" in told
    except RelocatorError:
        return False


def dest_vm(monitor: Monitor) -> DestVm:
    """What the destination's QEMU is doing."""
    try:
        status = monitor.call("query-status")["status"]
        if status == "inmigrate":
            migration = monitor.call("query-migrate").get("status")
            return DestVm.RECEIVING if migration in ("active", "device") else DestVm.WAITING
    except RelocatorError:
        return DestVm.GONE
    return DestVm.RUNS if status == "running" else DestVm.STOPPED


class Loss(NamedTuple):
    """Why a QEMU can't be reached. `ended`: nobody listens there; else it may run for all that."""

    why: str
    ended: bool


def loss(monitor: Monitor) -> Loss | None:
    """Why it can't be reached; None if it can."""
    try:
        monitor.connect()
    except RelocatorError as error:
        cause = error.__cause__
        nobody = isinstance(
            getattr(cause, "exc", cause), ConnectionRefusedError | FileNotFoundError
        )
        return Loss(str(error), nobody)
    return None


def _disk(disk: Disk) -> DiskSeen:
    status = disk.status()  # first: a seal that is confirmed is there when its source is asked
    try:
        source = disk.source.identify()
    except RelocatorError:
        source = None
    return DiskSeen(status, source)


def look(source: Monitor, destination: Monitor, disks: Sequence[Disk]) -> Seen:
    """Ask everybody."""
    return Seen(source_vm(source), dest_vm(destination), tuple(of_all(disks, _disk)))
