"""The disks of one VM: taken over together, all or none.

Each disk seals its source and holds its writes; once all seals are confirmed, all are released, and
from the first release on the VM belongs here. Until then every disk can be given back: what one
refuses, none has done.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from relocator.errors import RelocatorError

LOOK_EVERY_S = 0.005


class Disk(Protocol):
    """A proxy's control, such as `Client`."""

    def call(self, verb: str, patience_s: float | None = ..., **arguments: Any) -> dict[str, Any]:
        """Carries out a verb, and returns the status after it."""


def activate(disks: Sequence[Disk], *, seal: bool = True) -> list[Disk]:
    """Begin to take all over; their writes wait until they are released. Returns at once.

    Without `seal` all is made ready for that, and the guest runs on at the source. Returns the
    disks that were active already; those stay so.

    Raises:
        RelocatorError: one refuses; the others are withdrawn.
    """
    already: list[Disk] = []

    def begin(disk: Disk) -> None:
        if disk.call("activate", hold=True, seal=seal).get("already_active"):
            already.append(disk)

    failures = _of_all(disks, begin)
    if failures:
        begun = [disk for disk in disks if disk not in already]
        raise _with_notes(failures[0], withdraw(begun))
    return already


def release(disks: Sequence[Disk]) -> None:
    """Once all seals are confirmed, let writes pass on all.

    Raises:
        RelocatorError: a source could not be sealed; all are withdrawn, nothing was written.
    """
    try:
        for disk in disks:
            _await_seal(disk)
    except RelocatorError as error:
        raise _with_notes(error, withdraw(disks)) from error
    failures = _of_all(disks, lambda disk: disk.call("release"))
    if failures:
        raise failures[0]


def withdraw(disks: Sequence[Disk]) -> list[RelocatorError]:
    """Give all back to their sources; what could not be given back, and why."""
    return _of_all(disks, lambda disk: disk.call("withdraw"))


def _await_seal(disk: Disk) -> None:
    while True:
        status = disk.call("status")
        if status["state"] == "standby":
            raise RelocatorError(status["error"] or "the disk is in standby: it was withdrawn")
        if status["seal_confirmed"]:
            return
        time.sleep(LOOK_EVERY_S)


def _of_all(disks: Sequence[Disk], step: Callable[[Disk], Any]) -> list[RelocatorError]:
    """`step` for all disks at once; the errors, in the disks' order."""

    def attempt(disk: Disk) -> RelocatorError | None:
        try:
            step(disk)
        except RelocatorError as error:
            return error
        return None

    with ThreadPoolExecutor(len(disks)) as pool:
        return [error for error in pool.map(attempt, disks) if error is not None]


def _with_notes(error: RelocatorError, left: Iterable[RelocatorError]) -> RelocatorError:
    """`error`, and what could not be undone after it."""
    return RelocatorError("; ".join([str(error), *(f"not undone: {other}" for other in left)]))
