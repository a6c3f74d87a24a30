"""The way back: before the disks are released the guest can always go on at its source.

First the disks: a proxy that has given its disk back refuses the destination's writes, whether or
not its QEMU can be reached. Then the source's QEMU ends its migration, a guest that has arrived is
stopped, and only then it goes on at the source; the destination's QEMU is ended last. For a proxy
that can't be reached its source is unsealed by force: it holds its writes until somebody releases
it, and nobody has; should somebody do so later, it finds its seal undone. Its seal may be on its
way still: the source is told its name, and refuses it then. A process that has never heard from the
proxy doesn't know that name, and the proxy may be back soon, so for a while it is looked again. A
guest that was frozen is thawed once it runs.

A QEMU whose disk has lost its server answers neither `stop` nor `quit` before the server is back,
or `reconnect-delay` over: it waits for its requests. But `stop` stops the CPUs before that, and an
event says so. `quit` waits first and stops them then, so it can't stand in for `stop`.

If the source's QEMU can't be reached there is nothing to go back to for now. A guest that has
arrived, or may do so still, is then stopped rather than ended: it may be the only one there is. If
its disks are released later, it goes on. But as long as the source was not told to send the last of
the guest, the destination's QEMU can't have it, and is ended: the stream of memory may outlive the
way to QMP, and the guest would be paused at its end, for a word that nobody says. So the migration
fails, and the guest runs on.
"""

import time
from contextlib import suppress

from relocator.errors import RelocatorError
from relocator.moving import begin, seen
from relocator.moving.ends import Disk, of_all
from relocator.moving.monitor import Monitor, MonitorLostError, NoAnswerError
from relocator.moving.parties import Parties
from relocator.moving.seen import DestVm, SourceVm

CANCEL_S = 30.0
#: so long it is looked again after disks whose proxies can't be asked
LATE_S = 5.0
_LOOK_EVERY_S = 0.1
_UNDER_WAY = (SourceVm.SENDING, SourceVm.PAUSED, SourceVm.LAST)
_STANDS_STILL = ("postmigrate", "finish-migrate")


def go_back(parties: Parties) -> str:
    """Let the guest go on at the source.

    Raises:
        RelocatorError: it can't; the disks are where they can't be written twice.
    """
    if seen.source_vm(parties.source) is SourceVm.GONE:
        _nothing_to_go_back_to(parties)
    withdraw_all(parties)
    try:
        _cancel(parties)
        there = seen.dest_vm(parties.destination)
        if there in (DestVm.RUNS, DestVm.RECEIVING):
            _stop(parties)
        parties.stopped_there |= there is DestVm.STOPPED
        _go_on(parties)
    except MonitorLostError:
        _break_off(parties)
        raise
    try:
        try:
            parties.freeze.thaw_at_source()
        finally:
            begin.undo(parties)
    finally:
        _look_again(parties)
        if there in (DestVm.RUNS, DestVm.RECEIVING, DestVm.STOPPED):
            _end(parties.destination)
    return "back"


def withdraw_all(parties: Parties) -> None:
    """Give all disks back to their sources.

    Raises:
        RelocatorError: one can't be: something was written there, or might have been. If it might
            have been, all are left as they are.
    """
    if not parties.untold:
        _see_untold(parties)
    refusals = [why for why in of_all(parties.disks, lambda d: _withdraw(d, parties)) if why]
    if refusals:
        raise RelocatorError("the disks can't all go back: " + "; ".join(refusals))


def _see_untold(parties: Parties) -> None:
    """Whoever holds its disk still was told of no release.

    Raises:
        RelocatorError: one was released, or can't be asked.
    """
    refusals = [why for why in of_all(parties.disks, _may_be_released) if why]
    if refusals:
        raise RelocatorError("the disks can't go back: " + "; ".join(refusals))
    parties.untold = True


def _may_be_released(disk: Disk) -> str | None:
    """Why its writes may pass at the destination; None if they don't."""
    try:
        status = disk.call("status")
    except RelocatorError as error:
        return (
            f"{error}; it may have been released already. Start it again; or, if it is certain "
            "that nothing runs at the destination any more, add --lost destination"
        )
    if status["state"] == "standby" or status["held"]:
        return None
    return f"disk {disk.name}: it was released, so its writes pass at the destination"


def _withdraw(disk: Disk, parties: Parties, *, again: bool = True) -> str | None:
    """Give one disk back; why it can't be. `again`: one whose proxy is back now is asked again."""
    try:
        disk.call("withdraw", patience_s=30.0)
    except RelocatorError as error:
        status = disk.status()
        if again and status is not None and status["state"] == "activating":
            return _withdraw(disk, parties, again=False)
        if status is not None and status["state"] != "standby":
            return str(error)
        try:
            _unseal(disk, by_force=status is None)
        except RelocatorError as other:
            parties.late[disk.name] = (
                f"disk {disk.name}: its source can't be told ({other}); should it be sealed, "
                "writes wait there until its proxy can tell it, or `relocator unseal --force` does"
            )
            return None
        if status is None and disk.asks_for is None:
            parties.late[disk.name] = (
                f"disk {disk.name}: its proxy can't be asked; should a seal that it has asked for "
                "reach the source only now, writes wait there until it is started again, and told "
                "by --settle, or `relocator unseal --force` is said at the source"
            )
            return None
    parties.late.pop(disk.name, None)
    return None


def _unseal(disk: Disk, *, by_force: bool) -> None:
    """Let the source write again, by the word of its proxy or without it."""
    found = disk.source.identify()
    if by_force and found["seal"] is not None:
        disk.source.unseal(force=not found["moved"])
        disk.asks_for = found["seal"]
    elif by_force and disk.asks_for is not None:
        disk.source.unseal(disk.asks_for)
    elif found["seal"] is not None:
        disk.source.unseal(disk.call("identify")["withdrawn"])


def _look_again(parties: Parties) -> None:
    """A proxy that could not be asked is back, or had asked for a seal that is made only now."""
    out = list(parties.disks) if parties.untold else []
    give_up_s = time.monotonic() + LATE_S
    while (out := [disk for disk in out if not _in_standby(disk)]) and time.monotonic() < give_up_s:
        for disk in out:
            _withdraw(disk, parties)
        time.sleep(_LOOK_EVERY_S)


def _in_standby(disk: Disk) -> bool:
    """Whether it has been given back; one that was restarted meanwhile knows nothing of that."""
    status = disk.status()
    return status is not None and status["state"] == "standby"


def _nothing_to_go_back_to(parties: Parties) -> None:
    """The source's QEMU can't be reached.

    Raises:
        RelocatorError: always.
    """
    if seen.dest_vm(parties.destination) in (DestVm.RUNS, DestVm.STOPPED):
        _stop(parties)
        raise RelocatorError("the source's QEMU can't be reached, and the disks are not all sealed")
    withdraw_all(parties)
    ended = _break_off(parties)
    raise RelocatorError(f"the source's QEMU can't be reached{ended}")


def _break_off(parties: Parties) -> str:
    """The source's QEMU can't be told to cancel, and the disks have gone back; what was done."""
    there = seen.dest_vm(parties.destination)
    if there is DestVm.RECEIVING and parties.unsent:
        _end(parties.destination)
        return "; the destination's, which was still receiving, was ended"
    if there in (DestVm.RUNS, DestVm.RECEIVING):
        _stop(parties)
    return ""


def _cancel(parties: Parties) -> None:
    """End the source's migration, if one is under way, and wait for its end."""
    if seen.source_vm(parties.source) not in _UNDER_WAY:
        return
    parties.source.call("migrate_cancel")
    give_up_s = time.monotonic() + CANCEL_S
    while seen.source_vm(parties.source) in _UNDER_WAY:
        if time.monotonic() > give_up_s:
            raise RelocatorError(f"QEMU has not cancelled the migration within {CANCEL_S:.0f} s")
        time.sleep(0.02)


def _stop(parties: Parties) -> None:
    """Let no guest run there any more; one that can't be told has lost its disks already."""
    with suppress(RelocatorError):
        parties.destination.call_until("STOP", "stop")
        parties.stopped_there = True


def _end(destination: Monitor) -> None:
    """End a QEMU that has the guest, or half of it. One that waits for a migration may go on to.

    Raises:
        RelocatorError: it doesn't end yet.
    """
    try:
        destination.call_until("SHUTDOWN", "quit")
    except NoAnswerError as error:
        raise RelocatorError(
            f"{error}; end it by hand: it has a guest that can't write any more"
        ) from error
    except RelocatorError:
        pass  # it hangs up before it answers


def _go_on(parties: Parties) -> None:
    """Let the guest run at the source, if it did."""
    status = parties.source.call("query-status")["status"]
    if parties.ran_at_source is not False and status in _STANDS_STILL:
        parties.source.call("cont")
