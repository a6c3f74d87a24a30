"""The steps of a move: one for each stage, each ending with what stages.NEXT knows as its outcome.

While the guest stands still nothing is asked that need not be. Before its memory is sent the
proxies are *armed*: they have on record that the disks will be taken over, so a write that reaches
them waits. QEMU's event that the guest stands still is then answered with `migrate-continue` at
once, and the sources are sealed while the rest of its state travels; its reads need none of that.

The release is sent once three things are known: the destination runs, the source's QEMU has ended
its part (else it might still decide that the migration failed, and resume), and every source is
sealed. `Parties.untold` is what a process knows that has watched from the beginning: that no
release was sent. One that finds a move half done can't know that of a proxy it can't reach.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

from relocator import group
from relocator.errors import RelocatorError
from relocator.moving import back, begin, seen
from relocator.moving.downtime import Clocks, Parts
from relocator.moving.ends import Disk, of_all
from relocator.moving.freezing import limits_of
from relocator.moving.monitor import Event
from relocator.moving.parties import Parties, Plan
from relocator.moving.seen import DestVm, SourceVm
from relocator.moving.stages import Stage
from relocator.moving.telling import Hooks, Progress, Report
from relocator.running.states import ALL_HERE
from relocator.signals import uninterrupted

LOOK_EVERY_S = 0.2
SEAL_EVERY_S = 0.005
COPY_EVERY_S = 0.5
#: how long --wait lets the guest stand still for the seals
SEAL_S = 30.0
#: how long the report waits for the first I/O of a guest that has had none when all is done
FIRST_IO_S = 5.0
#: how long a guest may be on its way once all of it has been sent
ARRIVE_S = 20.0
#: how long the destination's QEMU may be out of reach meanwhile
LOST_S = 2.0
#: how long the last of its state may take to be sent
SEND_S = 60.0


class Steps:
    """What is done in each stage."""

    def __init__(self, parties: Parties, plan: Plan, hooks: Hooks) -> None:
        self.report = Report(notes=parties.notes)
        self._parties = parties
        self._plan = plan
        self._hooks = hooks
        self._clocks = Clocks()
        self._interrupted = self._armed = self._sealing = self._brought = self._thawed = False
        self._began = False
        #: how many events both QEMUs had told before this migration's last part
        self._before = (0, 0)
        self._of: dict[Stage, Callable[[], str]] = {
            Stage.HOME: self._home,
            Stage.STARTING: self._starting,
            Stage.MEMORY: self._memory,
            Stage.PAUSED: self._paused,
            Stage.SWITCHING: self._switching,
            Stage.ARRIVED: self._arrived,
            Stage.MOVED: self._moved,
            Stage.COMPLETE: self._complete,
            Stage.RETURNING: self._returning,
        }

    def take(self, stage: Stage) -> str:
        """The step of `stage`; returns its outcome.

        Raises:
            RelocatorError: it failed.
        """
        with uninterrupted() if stage is Stage.RETURNING else nullcontext():
            self._hooks.tell(Progress(stage))
            self._hooks.seam(stage.value)
            return self._of[stage]()

    def failed(self, stage: Stage, error: BaseException) -> str:
        """The outcome of a step that ended with `error`.

        Once a disk may have been released there is no way but forward: an interruption waits then.
        """
        if stage is not Stage.ARRIVED or not self._brought:
            return "failed"
        self._interrupted = isinstance(error, KeyboardInterrupt)
        return "released"

    def _home(self) -> str:
        """All is at the source: wait until the move may begin, then see that it can."""
        if self._plan.lost:
            raise RelocatorError(
                f"--lost {' and '.join(sorted(self._plan.lost))}: is for the end of an interrupted "
                "move, and here one would begin; leave it out"
            )
        begin.check(self._parties)
        self._hooks.ahead()
        begin.check(self._parties)
        self._parties.freeze.thaw_at_source()  # what a move that was killed has left
        self._hooks.watch()
        self._parties.untold = self._parties.unsent = True
        return "ready"

    def _starting(self) -> str:
        self._arm()
        begin.start(self._parties, self._plan)
        self._began = True
        return "begun"

    def _returning(self) -> str:
        """Back to the source; this waits for nobody for long."""
        return back.go_back(self._parties)

    def _memory(self) -> str:
        """Until QEMU has paused the guest."""
        since = len(self._parties.source.events)
        self._arm()
        joins = not self._began  # where another process was
        while True:
            state = self._parties.source.call("query-migrate")
            status = state.get("status")
            if status == "pre-switchover":
                self._parties.freeze.check_done()
                return "paused"
            if status in ("failed", "cancelled", "cancelling", "completed", None):
                why = state.get("error-desc") or f"it is {status} before the switch"
                raise RelocatorError(f"QEMU could not migrate the guest: {why}")
            states = tuple(self._parties.statuses())
            self._hooks.tell(Progress(Stage.MEMORY, state, states))
            for disk, found in zip(self._parties.disks, states, strict=True):
                if found is None or not found["held"]:
                    raise RelocatorError(f"disk {disk.name}: its proxy is not ready any more")
            if joins:
                before = self._parties.limits_before = limits_of(self._parties.source)
                limits = self._parties.freeze.later_limits(before | self._plan.limits)
                self._parties.source.call("migrate-set-parameters", **limits)
                joins = False
            if self._parties.freeze.when_near(state):
                self._clocks.note("frozen")
                self._hooks.seam("frozen")
            wanted = _migrated("pre-switchover", "failed")
            event = self._parties.source.await_event(wanted, LOOK_EVERY_S, since)
            if event is not None and event.data["status"] == "pre-switchover":
                self._parties.freeze.check_done()
                return "paused"

    def _arm(self) -> None:
        """See that no write passes at the destination, whatever comes."""
        if not self._armed:
            group.activate(self._parties.disks, seal=False)
            self._armed = True

    def _paused(self) -> str:
        """The guest stands still: let QEMU go on, and seal the sources."""
        self._arm()
        if self._plan.wait_for_seal:
            group.activate(self._parties.disks)
            self._await_seals(time.monotonic() + SEAL_S)
        self._parties.unsent = False
        told_here, told_there = self._parties.source.events, self._parties.destination.events
        self._before = (len(told_here), len(told_there))
        self._parties.source.call("migrate-continue", state="pre-switchover")
        self._hooks.seam("continued")
        self._seal()
        return "continued"

    def _seal(self) -> None:
        """Let the proxies seal their sources; this asks each once."""
        if not self._sealing:
            group.activate(self._parties.disks, may_run_here=not self._parties.untold)
            self._sealing = True
            self._clocks.note("sealing")

    def _switching(self) -> str:
        """Until the destination's QEMU has the guest, and the source's knows that it hasn't."""
        began_s = heard_s = time.monotonic()
        while not self._told_of_arrival():
            there = seen.dest_vm(self._parties.destination)
            if there is not DestVm.GONE:
                heard_s = time.monotonic()
            elif lost := seen.loss(self._parties.destination):
                if lost.ended:
                    raise RelocatorError("the destination's QEMU was lost before it had the guest")
                if time.monotonic() > heard_s + LOST_S:
                    raise RelocatorError(f"{lost.why}; it may have the guest")
            here = seen.source_vm(self._parties.source)
            if here is SourceVm.HOME:
                raise RelocatorError("QEMU at the source took the guest back")
            if there in (DestVm.RUNS, DestVm.STOPPED) and here in (SourceVm.SENT, SourceVm.GONE):
                if there is DestVm.STOPPED and self._parties.ran_at_source:
                    self._parties.destination.call("cont")  # it was started with -S
                break
            limit_s = ARRIVE_S if here is SourceVm.SENT else SEND_S
            if time.monotonic() > began_s + limit_s:
                raise RelocatorError(f"the guest did not arrive within {limit_s:.0f} s")
        return "runs there"

    def _told_of_arrival(self) -> bool:
        """Whether both QEMUs have told, within a moment, what else would have to be asked."""
        here, there = self._before
        if self._parties.destination.await_event(_resumed, 0.05, there) is None:
            return False
        return self._parties.source.await_event(_migrated("completed"), 0.05, here) is not None

    def _arrived(self) -> str:
        """Once every source has confirmed its seal, release all disks."""
        self._seal()  # a process that came later
        self._await_seals(float("inf"))
        self._clocks.note("sealed")
        self._hooks.seam("sealed")
        self._parties.untold, self._brought = False, True  # see `failed`
        of_all(self._parties.disks, _release)
        self._clocks.note("released")
        return "released"

    def _await_seals(self, give_up_s: float) -> None:
        """Until every source is sealed, by its proxy's word; one that was restarted is told again.

        Raises:
            RelocatorError: one can't be, or the destination has lost the guest.
        """
        looked_s = time.monotonic()
        while True:
            states = of_all(self._parties.disks, lambda disk: disk.call("status"))
            for disk, state in zip(self._parties.disks, states, strict=True):
                if state["state"] == "standby":
                    raise RelocatorError(f"disk {disk.name}: {state['error'] or 'was withdrawn'}")
            if all(state["seal_confirmed"] for state in states):
                return
            if time.monotonic() > give_up_s:
                raise RelocatorError(f"the sources were not all sealed within {SEAL_S:.0f} s")
            if time.monotonic() > looked_s + LOOK_EVERY_S:
                looked_s = time.monotonic()
                self._parties.destination.call("query-status")
                of_all(self._parties.disks, group.see_to_seal)
            time.sleep(SEAL_EVERY_S)

    def _moved(self) -> str:
        """The destination has guest and disks: until all blocks are there."""
        self.release_all(float("inf"))
        self._hooks.seam("released")
        self._thaw()
        if self._interrupted:
            raise KeyboardInterrupt
        self._ask_qemu()
        for disk in self._parties.disks:
            _copy_on(disk)
        while True:
            self._thaw()
            states = self._parties.statuses()
            self._hooks.tell(Progress(Stage.MOVED, None, tuple(states), self._trouble(states)))
            self._see_none_outdated(states)
            if all(state is not None and state["state"] in ALL_HERE for state in states):
                self._parties.freeze.thaw_at_destination()
                self._thaw()
                return "all here"
            time.sleep(COPY_EVERY_S)

    def _see_none_outdated(self, states: Sequence[dict[str, Any] | None]) -> None:
        """Each disk has one version.

        Raises:
            RelocatorError: the source of one was unsealed, so the guest can't write to it here.
        """
        for disk, state in zip(self._parties.disks, states, strict=True):
            if state is not None and state["state"] == "outdated":
                raise RelocatorError(f"disk {disk.name}: {state['error']}")

    def _thaw(self) -> None:
        """Thaw the guest, if it was frozen and could not be thawed yet."""
        if not self._thawed and self._parties.freeze.try_thaw():
            self._thawed = True
            self._clocks.note("thawed")

    def release_all(self, give_up_s: float) -> None:
        """Release what is not released yet; a proxy that is down is waited for.

        Raises:
            RelocatorError: one could not be released in time, or is outdated.
        """
        while True:
            states = self._parties.statuses()
            held = [
                disk
                for disk, state in zip(self._parties.disks, states, strict=True)
                if state is None or state["state"] == "standby" or state.get("held")
            ]
            if not held:
                self._see_none_outdated(states)
                self._let_go_on()
                return
            for disk in held:
                try:
                    disk.call("activate", hold=True)
                    disk.call("release")
                except RelocatorError as error:
                    self._hooks.tell(Progress(Stage.MOVED, None, tuple(states), str(error)))
            if time.monotonic() > give_up_s:
                raise RelocatorError(f"disk {held[0].name} could not be released yet")
            time.sleep(LOOK_EVERY_S)

    def _let_go_on(self) -> None:
        """A way back that came to nothing may have stopped the guest that this process releases."""
        if self._brought and self.stands_still():
            with suppress(RelocatorError):  # it is asked again at the end
                self._parties.destination.call("cont")

    def stands_still(self) -> bool:
        """Whether the guest stands still at the destination, unless it did when the move began."""
        if self._parties.ran_at_source is False:
            return False
        try:
            status = self._parties.destination.call("query-status")["status"]
        except RelocatorError:
            return False
        return status in ("paused", "prelaunch")

    def _complete(self) -> str:
        """Prove that what was copied is what the source has."""
        self._parties.freeze.thaw_at_destination()
        for disk in self._parties.disks:
            self.report.disks[disk.name] = disk.call("status")
        if self._plan.verify:
            self._hooks.tell(Progress(Stage.COMPLETE, note="comparing with the source"))
            for disk in self._parties.disks:
                try:
                    proof = disk.call("verify", patience_s=None)
                except RelocatorError as error:
                    if "differ" in str(error):
                        raise
                    self.report.notes.append(f"not verified: {error}")
                else:
                    self.report.disks[disk.name].update(proof)
        self.report.downtime = self._pause()
        begin.undo_there(self._parties, self._plan)
        if self._plan.quit_source:
            try:
                self._parties.source.call("quit")
            except RelocatorError as error:
                self.report.notes.append(f"--quit-source: {error}")
        return "proven"

    def _pause(self) -> Parts:
        """The pause in its parts; a quiet guest's first read and write are waited for a while."""
        give_up_s = time.monotonic() + FIRST_IO_S
        while True:
            parts = self._clocks.parts(
                self._parties.source.events,
                self._parties.destination.events,
                self.report.memory,
                self._parties.statuses(),
            )
            first = (parts.first_read_answered_s, parts.first_write_answered_s)
            if parts.total_s is None or None not in first or time.monotonic() > give_up_s:
                return parts
            waits = Progress(Stage.COMPLETE, note="waiting for the guest's first I/O")
            self._hooks.tell(waits)
            time.sleep(LOOK_EVERY_S)

    def _ask_qemu(self) -> None:
        try:
            self.report.memory = self._parties.source.call("query-migrate")
        except RelocatorError:
            self.report.notes.append("the source's QEMU can't be reached any more")

    def _trouble(self, states: Sequence[dict[str, Any] | None]) -> str:
        """What keeps a disk from getting further, in a line."""
        for disk, state in zip(self._parties.disks, states, strict=True):
            if state is None:
                return f"disk {disk.name}: its proxy doesn't answer; start it again"
            if state["error"]:
                return f"disk {disk.name}: {state['error']}"
        return self._parties.freeze.trouble


def _resumed(event: Event) -> bool:
    return event.name == "RESUME"


def _migrated(*wanted: str) -> Callable[[Event], bool]:
    return lambda event: event.name == "MIGRATION" and event.data.get("status") in wanted


def _release(disk: Disk) -> None:
    """Release one disk; if that fails, what follows tries again."""
    with suppress(RelocatorError):
        disk.call("release")


def _copy_on(disk: Disk) -> None:
    """See that the background copy runs."""
    status = disk.status()
    if status is None or status["background"] == "on" or status["state"] in ALL_HERE:
        return
    with suppress(RelocatorError):  # it has become complete meanwhile, or the loop tells
        if status["background"] == "paused":
            disk.call("resume")
        else:
            disk.call("set", background="on")
