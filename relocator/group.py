"""The disks of one VM: taken over together, all or none.

Each disk seals its source and holds its writes; once all seals are confirmed, all are released, and
from the first release on the VM belongs here. Until then every disk can be given back: what one
refuses, none has done. Disks that nobody holds were taken over before; they stay so.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

from relocator.errors import RelocatorError
from relocator.signals import uninterrupted

LOOK_EVERY_S = 0.005
TELL_EVERY_S = 0.2
#: so long a disk that has refused is waited for
LOOK_S = 10.0
LEFT = "left as it was: all are given back, or none"


class _WithdrawnError(RelocatorError):
    """A disk is at its source again."""


class Disk(Protocol):
    """A proxy's control, such as `Client`."""

    def call(self, verb: str, patience_s: float | None = ..., **arguments: Any) -> dict[str, Any]:
        """Carries out a verb, and returns the status after it."""


def activate(disks: Sequence[Disk], *, seal: bool = True, may_run_here: bool = False) -> list[Disk]:
    """Begin to take all over; their writes wait until they are released. Returns at once.

    Without `seal` all is made ready for that, and the guest runs on at the source. Returns the
    disks that were active already; those stay so.

    `may_run_here`: the VM has perhaps been let go on, and one of them been released.

    Raises:
        RelocatorError: one refuses, or can't be asked; the others are withdrawn, but for those, and
            unless it may run here.
    """
    already: list[Disk] = []

    def begin(disk: Disk) -> None:
        if disk.call("activate", hold=True, seal=seal).get("already_active"):
            already.append(disk)

    failures = _of_all(disks, begin)
    if failures:
        raise failures[0] if may_run_here else _given_up(failures[0], disks)
    return already


def release(disks: Sequence[Disk], *, may_run_here: bool = True) -> None:
    """Once all seals are confirmed, let writes pass on all; this is not interrupted halfway.

    `may_run_here`: the VM has perhaps been let go on; then only a disk that is known to be at its
    source has the others given back.

    Raises:
        RelocatorError: a source could not be sealed; all that were held are withdrawn. Or one can't
            be asked, and all are left as they are. Or not all could be told, when some had been.
    """
    try:
        if failures := _of_all(disks, see_to_seal):
            raise failures[0]
        for disk in disks:
            _await_seal(disk)
    except _WithdrawnError as error:
        raise _given_up(error, disks) from error
    except RelocatorError as error:
        if not may_run_here:
            raise _given_up(error, disks) from error
        why = f"not released: {error}; nothing was given back; `release` them again"
        raise RelocatorError(why) from error
    with uninterrupted():
        failures = _of_all(disks, lambda disk: disk.call("release"))
    if failures:
        why = "; ".join(map(str, failures))
        raise RelocatorError(f"all are sealed, but not all released: {why}; `release` them again")


def withdraw(disks: Sequence[Disk]) -> list[RelocatorError | None]:
    """Give all back to their sources, or none; for each disk why it was not, or None.

    A VM that writes to one of them runs here, and needs those, too, that it has not written. So
    where a write may pass they are told one after the other, first what will refuse, and the first
    refusal leaves the others as they are.

    Raises:
        RelocatorError: one can't be asked how it is; none was told.
    """
    try:
        statuses = [disk.call("status") for disk in disks]
    except RelocatorError as error:
        raise RelocatorError(f"{error}; nothing was given back") from error
    if not any(map(_passes, statuses)):
        return _each(disks, _withdraw)
    failures: list[RelocatorError | None] = [RelocatorError(LEFT)] * len(disks)
    for at in sorted(range(len(disks)), key=lambda at: _may_go_back(statuses[at])):
        failures[at] = _attempt(disks[at], _withdraw)
        if failures[at] is not None and not _is_back(disks[at]):
            break
    return failures


def give_up(disks: Sequence[Disk], patience_s: float = 60.0) -> list[RelocatorError | None]:
    """Give back what is held; for each disk why it could not be, or None.

    One that nothing holds was taken over before: its VM may run here, though it wrote nothing. So
    what can't be asked how it is stays as it is.
    """

    def back(disk: Disk) -> None:
        if not _passes(disk.call("status", patience_s)):
            disk.call("withdraw", patience_s)

    return _each(disks, back)


def see_to_seal(disk: Disk) -> None:
    """What is held asks for its seal only once it is told to: not since a restart, nor if armed.

    Told again, it goes on with the seal that it has begun, by the same name, and stays held.
    """
    status = disk.call("status")
    if status["state"] == "activating" and status["held"] and not status["seal_confirmed"]:
        disk.call("activate", hold=True, status=False)


def _await_seal(disk: Disk) -> None:
    """Until its source is sealed; a disk that was restarted meanwhile is told again."""
    told_s = time.monotonic()
    while True:
        status = disk.call("status")
        if status["state"] == "standby":
            raise _WithdrawnError(
                status["error"]
                or "the disk is in standby: nothing was activated, or it was withdrawn"
            )
        if status["seal_confirmed"]:
            return
        if time.monotonic() > told_s + TELL_EVERY_S:
            told_s = time.monotonic()
            with suppress(RelocatorError):  # why it refuses is seen at the next look
                see_to_seal(disk)
        time.sleep(LOOK_EVERY_S)


def _of_all(disks: Sequence[Disk], step: Callable[[Disk], Any]) -> list[RelocatorError]:
    """`step` for all disks at once; the errors, in the disks' order."""
    return [error for error in _each(disks, step) if error is not None]


def _each(disks: Sequence[Disk], step: Callable[[Disk], Any]) -> list[RelocatorError | None]:
    """The same, with None for each disk that had none."""

    with ThreadPoolExecutor(max(1, len(disks))) as pool:
        return list(pool.map(lambda disk: _attempt(disk, step), disks))


def _attempt(disk: Disk, step: Callable[[Disk], Any]) -> RelocatorError | None:
    try:
        step(disk)
    except RelocatorError as error:
        return error
    return None


def _withdraw(disk: Disk) -> None:
    disk.call("withdraw")


def _given_up(error: RelocatorError, disks: Sequence[Disk]) -> RelocatorError:
    """Undo what was begun; `error`, what could not be undone after it, and that all others were."""
    left = [str(other) for other in give_up(disks) if other is not None]
    told = [str(error), *(f"not undone: {other}" for other in left if other != str(error))]
    if len(disks) > 1 and len(left) < len(disks):
        told.append("no other disk was taken over")
    return RelocatorError("; ".join(told))


def _is_back(disk: Disk) -> bool:
    """Whether a disk is known to be at its source, though that may not have been told yet."""
    try:
        return bool(disk.call("status", LOOK_S)["state"] == "standby")
    except RelocatorError:
        return False


def _passes(status: dict[str, Any]) -> bool:
    """Whether the VM's writes pass at a disk, or will by themselves."""
    return status["state"] != "standby" and not status["held"]


def _may_go_back(status: dict[str, Any]) -> bool:
    """Whether a disk can be withdrawn, as far as it is known."""
    written = status.get("diverged", status["dirty_blocks"] > 0)  # that of an older server
    return status["state"] in ("standby", "activating", "active") and not written
