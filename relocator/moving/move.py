"""A move, from wherever it is found to its end: the loop over stages and steps."""

import time

from relocator.errors import RelocatorError
from relocator.moving import back, begin, seen, stages
from relocator.moving.parties import MoveError, Parties, Plan
from relocator.moving.seen import DestVm, Disks, Loss, Seen, SourceVm
from relocator.moving.stages import NEXT, REVOCABLE, Stage
from relocator.moving.steps import Steps
from relocator.moving.telling import Hooks, Progress, Report
from relocator.moving.verdict import verdict
from relocator.signals import uninterrupted

#: how long `settle` waits for a proxy that is down
SETTLE_S = 20.0
_NOT_HERE = (SourceVm.SENT, SourceVm.GONE)
#: one that waits may be another one: what had the guest has ended, and was started again
_NO_GUEST = (DestVm.GONE, DestVm.WAITING)
#: a guest that is leaving the source, or has left
_LEAVING = (SourceVm.SENDING, SourceVm.PAUSED, SourceVm.LAST, SourceVm.SENT)
_NO_HOOKS = Hooks()
_TWICE = (
    "All of the guest had been sent to the destination's QEMU, which may run it, too, on disks "
    "that refuse its writes: end it. If it is certain that it has ended, --settle --lost "
    "destination says no more of it."
)
_STOPPED = (
    "It is there with its disks, and every block, but was stopped: say `cont` to its QEMU's QMP "
    "socket, or `virsh resume` where libvirt has it."
)
_UNSURE = (
    "It may still have the guest. If it is certain that it doesn't run there, run the same command "
    "with --lost source."
)
_MOVED_THERE = (
    "No command of a move undoes that. `relocator unseal --force` at the source, for each disk, "
    "does, and gives up what was written at the destination; then the same command with --settle "
    "lets the guest go on at the source, if its QEMU still has it."
)


class Move:
    """One guest and its disks, from site to site."""

    def __init__(self, parties: Parties, plan: Plan, hooks: Hooks = _NO_HOOKS) -> None:
        self._parties = parties
        self._plan = plan
        self._hooks = hooks
        self._steps = Steps(parties, plan, hooks)

    def run(self) -> Report:
        """Go from where the move is found to its end.

        Raises:
            MoveError: it could not be done; says where guest and disks are, and what to do next.
        """
        stage, failure = self._found(), None
        while stage is not Stage.DONE:
            try:
                outcome = self._steps.take(stage)
            except (RelocatorError, KeyboardInterrupt) as error:
                if stage not in REVOCABLE:
                    raise self._ended(error, failure) from error
                outcome = self._steps.failed(stage, error)
                failure = error if outcome == "failed" else failure
            stage = NEXT[stage][outcome]
            if stage is Stage.HOME and failure is not None:
                raise self._ended(failure) from failure
        self._hooks.at_rest()
        if self._steps.stands_still():
            raise MoveError("the guest stands still at the destination", _STOPPED)
        self._hooks.tell(Progress(Stage.DONE))
        return self._steps.report

    def settle(self) -> str:
        """End an interrupted move without beginning one; says where guest and disks are then."""
        stage = self._found()
        if self._parties.was_home and (found := self._parties.look()).source in _LEAVING:
            return self._verdict(found)  # by another move, which is not ours to end
        if stage is Stage.HOME and self._parties.limits_before:
            begin.undo(self._parties)  # the migration that is watched over has ended by itself
        give_up_s = time.monotonic() + SETTLE_S
        if stage in (Stage.MEMORY, Stage.PAUSED) or (stage is Stage.HOME and self._is_left()):
            stage = Stage.RETURNING
        while stage not in (Stage.HOME, Stage.COMPLETE, Stage.DONE):
            try:
                if stage is Stage.MOVED:
                    self._steps.release_all(give_up_s)
                    break
                outcome = self._steps.take(stage)
            except RelocatorError as error:
                if stage not in REVOCABLE:
                    raise self._ended(error) from error
                outcome = self._steps.failed(stage, error)
            except KeyboardInterrupt as error:
                if (outcome := self._steps.failed(stage, error)) == "failed":
                    raise
            stage = NEXT[stage][outcome]
        self._parties.was_home = self._parties.was_home or stage is Stage.HOME
        found = self._parties.look()
        try:
            self._parties.freeze.settle(found)
        except RelocatorError as error:
            raise MoveError(str(error), self._verdict(found), again=True) from error
        if stage is not Stage.HOME and self._steps.stands_still():
            raise MoveError("the guest stands still at the destination", self._verdict(found))
        if self._may_run_twice(found):
            raise MoveError(
                "the guest may run at the destination, too", self._verdict(found), again=True
            )
        return self._verdict(found)

    def _is_left(self) -> bool:
        """Whether this move's guest was left at the destination, for that could not be told."""
        if not self._parties.guarded or not seen.was_sent(self._parties.source):
            return False
        return seen.dest_vm(self._parties.destination) in (DestVm.RUNS, DestVm.STOPPED)

    def _may_run_twice(self, found: Seen) -> bool:
        """Whether the destination's QEMU may run what has gone on at the source; that is said."""
        there = self._parties.destination
        if self._parties.stopped_there:
            return False
        if stages.find(found) is not Stage.HOME or not seen.was_sent(self._parties.source):
            return False
        if found.destination is DestVm.GONE and "destination" not in self._plan.lost:
            lost = seen.loss(there)  # None: it was away for the look only
            runs = lost is None or not lost.ended
        else:
            runs = found.destination is DestVm.RUNS
        if runs:
            self._parties.late[there.name] = _TWICE
        return runs

    def _verdict(self, found: Seen) -> str:
        """Where guest and disks are, and what may come yet."""
        return "\n".join([verdict(found), *self._parties.late.values()])

    def _ended(self, error: BaseException, before: BaseException | None = None) -> MoveError:
        """The error that a person is shown, from what is seen now; `before` had led to it."""
        causes = [cause for cause in (before, error) if cause is not None]
        whys = ["interrupted" if isinstance(c, KeyboardInterrupt) else str(c) for c in causes]
        found = self._parties.look()
        lost = seen.loss(self._parties.source) if found.source is SourceVm.GONE else None
        return self._left(found, whys, lost)

    def _out_of_reach(self, found: Seen, why: str, text: str) -> MoveError:
        """The same, of a source's QEMU that was not found to be there."""
        lost = seen.loss(self._parties.source)
        whys = [why if lost is None else f"{why} ({lost.why})"]
        return self._left(found, whys, lost, text)

    def _left(
        self, found: Seen, whys: list[str], lost: Loss | None, text: str | None = None
    ) -> MoveError:
        """What can be done for a guest that is left so is done: it is thawed, or its guard goes."""
        ended = lost is not None and lost.ended
        with uninterrupted():
            try:
                self._parties.freeze.settle(found)
            except RelocatorError as other:
                whys += [] if ended else [str(other)]
        at_source = stages.find(found) is Stage.LOST and found.together is Disks.STANDBY
        at_rest = stages.at_rest(found) or (ended and at_source)
        if at_rest := at_rest and not self._may_run_twice(found):
            self._hooks.at_rest()
        verdict_now = self._verdict(found) if text is None else text
        return MoveError("; then: ".join(whys), verdict_now, again=not (at_rest or ended))

    def _found(self) -> Stage:
        """Where the move stands, for a process that has just begun.

        Raises:
            MoveError: a person has to decide.
        """
        found = self._parties.look()
        stage = stages.find(found)
        arrived = found.destination in (DestVm.RUNS, DestVm.STOPPED)
        perhaps = found.destination in _NO_GUEST and found.source in _NOT_HERE
        self._parties.untold = not arrived and (not perhaps or "destination" in self._plan.lost)
        unsure = found.source is SourceVm.GONE and "source" not in self._plan.lost
        if stage is Stage.ARRIVED and unsure:
            why = "the guest is at the destination, but the source's QEMU can't be reached"
            raise self._out_of_reach(found, why, _UNSURE)
        if stage is Stage.LOST:
            # Else a move may be under way, by a process that has the source's QEMU.
            why = "the source's QEMU can't be reached"
            if "source" in self._plan.lost and any(disk.held for disk in found.disks):
                back.withdraw_all(self._parties)
                found = self._parties.look()
            elif "source" in self._plan.lost:
                why = f"--lost source: no disk is held that could be given back; {why}"
            raise self._out_of_reach(found, why, self._verdict(found))
        both = zip(self._parties.disks, found.disks, strict=True)
        gone = [disk.name for disk, one in both if one.status is None and one.released]
        if gone and "destination" in self._plan.lost:
            why = f"disk {', '.join(gone)}: its source knows that the guest's writes passed there"
            raise MoveError(f"--lost destination: {why}", _MOVED_THERE)
        if stage is Stage.CONFLICT:
            raise MoveError("nothing was done", verdict(found))
        if stage not in (Stage.HOME, Stage.COMPLETE):
            self._hooks.watch()
        return stage
