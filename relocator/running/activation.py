"""How a disk is taken over, and given back: the destination's side of the handover.

    activate: the intent durable, writes wait -> the VMM may let the guest go on: its reads pass
              through, and the source stands still, for the guest runs there no more
              -> seal -> dirty since the epoch -> drop those blocks (some come with the seal, see
              sealing.py) -> durable -> writes pass
    release:  the guest runs here, says who had asked for a *hold*; until then writes wait
    moved:    the source is told that writes pass here, and what follows (see afterwards.py)
    withdraw: nothing was written here -> standby, durable -> the source undoes its seal

A source that is not ours can't be sealed: that it stands still is the operator's word, and holds
once there is no hold any more. Only then is what was stored here dropped: all of it (see
unrecorded.py), or what a bitmap says (see recorded.py).

No write is acknowledged here before the seal is durable at the source. The source stands still
before the first stale block is dropped, and whatever was asked of it before that is disowned, so
nothing older than the seal can arrive afterwards. The seal has the name that this side gave it, so
a withdrawal undoes its own activation's and no other, and a request that arrives later is refused.

One thread takes over. `_lock` lets one verb at a time begin or end that, and orders `moved` against
`withdraw`; it is held across I/O. `_settled`: look again. State changes are the lifecycle's.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from relocator.copying.pacer import Pacer
from relocator.errors import ConfigError, RelocatorError, StateError, StoreError, UpstreamError
from relocator.jobs import start
from relocator.running import states
from relocator.running.afterwards import AGAIN_S, Afterwards
from relocator.running.control import asker_has_gone
from relocator.running.epochs import Epochs
from relocator.running.parts import COMPLETION, HANDOVER, Parts
from relocator.running.recorded import Recorded
from relocator.running.rounds import NO_ROUNDS, Rounds
from relocator.running.sealing import Sealing
from relocator.running.states import State
from relocator.running.unrecorded import Unrecorded
from relocator.source.answer import check_id
from relocator.source.connection import backoff
from relocator.source.identity import samples_at
from relocator.source.remote import Source
from relocator.store.meta import Takeover, new_token

#: so often it is looked, in standby, whether a round is due
LOOK_EVERY_S = 0.2


class Activation:
    """Takes the disk over from `source`; `afterwards` is what it says to it then."""

    def __init__(self, parts: Parts, source: Source | None) -> None:
        self._parts = parts
        self._store = parts.store
        self._lifecycle = parts.lifecycle
        self._source = source
        self._lock = threading.Lock()
        #: how it is known what became stale; None if there is nothing that could
        self._sealing: Sealing | Recorded | Unrecorded | None = None
        #: None if nothing can be copied ahead
        self.rounds: Rounds | None = None
        if source is not None and (transfer := parts.transfer) is not None:
            if self._store.meta.bitmap is not None:
                self._sealing = recorded = Recorded(parts, source.endpoint, transfer, self._lock)
                self.rounds = Rounds(parts, recorded)
            elif self._is_ours:
                self._sealing = Sealing(parts, source, transfer)
                self.rounds = Rounds(parts, Epochs(parts, source, transfer, self._lock))
            else:
                self._sealing = Unrecorded(self._store, transfer)
        self.afterwards = Afterwards(parts, source, self._lock)
        self._settled = threading.Condition()
        self._giving_back = False  # under `_settled`: a thread is at it
        self._copies = parts.settings.background  # once the disk is active
        self._withdrawing = threading.Event()
        #: whether the thread may ask for the seal; it is there before, so that the guest waits less
        self._to_seal = False
        self._thread: threading.Thread | None = None
        self._token = new_token()
        self._sealed = False
        self._failure: RelocatorError | None = None
        self._seal_s: float | None = None
        self._drop_s: float | None = None

    def begin(self) -> None:
        """Go on where the last process was, or make ready for the switch."""
        if self._lifecycle.outdated:
            self.afterwards.be_outdated(self._store.meta.origin_seal)
        elif self._source is None:
            return
        elif self._lifecycle.state is State.ACTIVATING:
            if not self._held:  # else it may have been given up meanwhile: who holds it knows
                with self._lock:
                    self._go_on_locked()
        elif self._lifecycle.state is not State.STANDBY:
            start("handover", self.afterwards.run)
        elif self._owes:
            self._give_back_soon()
        else:
            start("handover", self._stay_ready)

    def join(self) -> None:
        """Wait until nothing is stored any more; once the lifecycle is stopping."""
        if self._lock.acquire(timeout=1.0):  # what a round brings is no longer applied
            self._lock.release()
        if self._sealing is not None:
            self._sealing.join()

    def status(self) -> dict[str, Any]:
        """The handover's part of the status object."""
        takeover = self._store.meta.takeover
        return {
            **(NO_ROUNDS if self.rounds is None else self.rounds.status()),
            "held": takeover is not None and takeover.held,
            "asks_for": None if takeover is None else takeover.token,
            "seal_confirmed": self._sealed or not self._lifecycle.pass_through,
            "notes": () if self._sealing is None else self._sealing.notes,
            "dropped_blocks": 0 if self._sealing is None else self._sealing.dropped_blocks,
            "brought_bytes": 0 if self._sealing is None else self._sealing.brought_bytes,
            "seal_s": self._seal_s,
            "drop_s": self._drop_s,
            "write_waited_s": self._lifecycle.gate.longest_wait_s,
        }

    def by_write(self, refusal: StateError) -> None:
        """The guest's first write here says that it has moved, unless somebody has."""
        if self._lifecycle.told or not self._lifecycle.pass_through:
            raise refusal
        self.activate(by_write=True)

    def activate(
        self, *, hold: bool = False, wait: bool = False, seal: bool = True, by_write: bool = False
    ) -> bool:
        """Begin to take the disk over; the guest may go on here once this returns.

        Its writes wait until the source has been sealed, with `hold` also until it is released.
        `wait`: return when that has ended (with `hold`, but for the release). Without `seal` it may
        run on at the source, until this is called again with it: then nothing need be made durable
        any more. A disk that is active stays so; whether it was.

        Raises:
            ConfigError, StateError, StoreError: refused, as for a target, or where who asks has
                hung up; nothing has changed.
            UpstreamError: the source can't be told of an earlier withdrawal, or (`wait`) be sealed.
        """
        if not seal and (wait or not hold):
            raise ConfigError("seal=False: needs hold=True, and not wait=True")
        if self._store.meta.source is None:
            raise StateError("'activate' is for a proxy: this disk was never at another site")
        with self._lock:
            owed = self._owes
            self._see_given_back_locked()  # what was withdrawn before comes first
            if self._is_failing and self._failure is not None:
                raise self._failure  # it is undone at this moment
            already = self._lifecycle.state not in states.PASSING
            if self._lifecycle.state is State.STANDBY:
                if owed and asker_has_gone():  # while the source was told: the VM may go on there
                    raise StateError("nobody waits for the activation any more")
                self._failure, self._to_seal = None, False  # those of an earlier one say nothing
                self._parts.faults.report(HANDOVER, None)  # nor are they told any more
                self._lifecycle.begin_activation(Takeover(self._token, hold), by_write=by_write)
                self._parts.requests.watch()
                if self.rounds is not None:
                    self._copy()
            elif not hold and not by_write:
                self._lifecycle.release()
            self._go_on_locked(seal=seal)
        if wait:
            self._await_activation()
        return already

    def release(self) -> None:
        """The guest runs here: its writes wait for nothing but the source's seal."""
        with self._lock:
            self._lifecycle.release()
            self._go_on_locked()

    def set_background(self, pacer: Pacer, wanted: bool) -> None:
        """Whether to copy in the background: from now on or, if until then the source doesn't say
        what is written there, once this disk is active."""
        self._copies = wanted
        if self.rounds is not None or not self._lifecycle.pass_through:
            pacer.set_enabled(wanted)

    def withdraw(self) -> None:
        """Give the disk back to its source, where it can be written again.

        Raises:
            StateError: something was written here, or this is no proxy.
            StoreError: that can't be made durable; nothing has changed.
            UpstreamError: the source can't be told now; this side is in standby.
        """
        if self._source is None:
            raise StateError("'withdraw' is for a proxy: this disk has no source")
        with self._lock:
            self._withdrawing.set()
            taking_over = self._thread is not None and self._thread.is_alive()
            if self._thread is not None:
                self._thread.join()
            self._thread = None
            self._withdrawing.clear()
            was_active = not self._lifecycle.pass_through
            try:
                self._lifecycle.withdraw()
            finally:
                if taking_over:  # if nothing has changed
                    self._go_on_locked(seal=self._to_seal)
            if was_active and not self._owes:
                self._stand_by_locked()
            for part in (COMPLETION, HANDOVER):  # what they tell is of the activation
                self._parts.faults.report(part, None)
            self._sealed = False
            if self.rounds is None and self._parts.transfer is not None:
                self._parts.transfer.pacer.set_enabled(False)  # what came now would be stale
        try:
            self._give_back()
        except StoreError:  # the source knows, but that can't be noted
            self._give_back_soon()
        except UpstreamError as error:
            self._give_back_soon()
            raise UpstreamError(
                "withdrawn here, but the source can't be told, and lets no write pass yet: "
                f"{error}; it is told as soon as it answers, or unseal it there, with --force"
            ) from error

    @property
    def _is_ours(self) -> bool:
        return self._store.meta.base is not None

    @property
    def _owes(self) -> bool:
        """Whether an activation was withdrawn, and the source may not know yet."""
        takeover = self._store.meta.takeover
        return takeover is not None and takeover.withdrawn

    def _copy(self) -> None:
        """Copy in the background from now on, if that is wanted."""
        if self._parts.transfer is not None:
            self._parts.transfer.pacer.set_enabled(self._copies)

    def _stay_ready(self) -> None:
        """Keep the copy in step, and a connection ready for the seal, in standby (a thread)."""
        token, sealing, rounds = self._token, self._sealing, self.rounds
        if sealing is None or rounds is None:
            return
        delays, ready_at_s = backoff(LOOK_EVERY_S), 0.0
        while token == self._token and self._lifecycle.pass_through:
            if self._lifecycle.state is State.STANDBY:
                if time.monotonic() >= ready_at_s:
                    try:
                        sealing.prepare(token)
                        delays = backoff(LOOK_EVERY_S)
                    except UpstreamError:  # it is connected to at the switch, then
                        ready_at_s = time.monotonic() + next(delays)
                rounds.step()
            if self._lifecycle.stopping.wait(LOOK_EVERY_S):
                return
        if token == self._token or not self._lifecycle.pass_through:  # else another is at it
            sealing.unprepare()  # such as what became ready while the source was being sealed

    def _go_on_locked(self, *, seal: bool = True) -> None:
        """Let the activation's thread go on with what has been decided."""
        if self._lifecycle.state is not State.ACTIVATING:
            return
        self._to_seal = self._to_seal or seal
        if self._thread is None or not self._thread.is_alive():
            self._failure = None
            self._lifecycle.go_on_activating()
            self._thread = start("handover", self._take_over)
        self._tell()

    def _await_activation(self) -> None:
        with self._settled:
            while self._lifecycle.state is State.ACTIVATING and self._failure is None:
                if self._sealed and self._held:
                    return
                self._settled.wait(1.0)
                if self._lifecycle.stopping.is_set():
                    raise StateError("the proxy is being stopped; the disk is not active")
        if self._failure is not None:
            raise self._failure
        if self._lifecycle.state is State.STANDBY:
            raise StateError("the activation was withdrawn meanwhile; the disk is in standby")

    @property
    def _is_failing(self) -> bool:
        """Whether the activation's thread has given up, and has not ended yet."""
        return self._failure is not None and self._thread is not None and self._thread.is_alive()

    def _tell(self) -> None:
        with self._settled:
            self._settled.notify_all()

    @property
    def _held(self) -> bool:
        takeover = self._store.meta.takeover
        return takeover is not None and takeover.held

    def _take_over(self) -> None:
        """Seal the source, wait for the release, drop what is stale, be active (a thread)."""
        try:
            self._wait_while(lambda: not self._to_seal)
            began_s = time.monotonic()
            self._lifecycle.gate.longest_wait_s = 0.0
            self._seal()
            self._seal_s = time.monotonic() - began_s
            self._sealed = True
            self._tell()
            if self._held and not self._is_ours:
                self._wait_while(lambda: self._held)
                self._seal()  # nothing has kept its guest from going on meanwhile
            changes = self._settle()
            self._note_content(changes)
            self._wait_while(lambda: self._held)
            self._lifecycle.activate(**changes)
            if self.rounds is None:
                self._copy()  # not before: what it brought might have been written at the source
            self._parts.faults.report(HANDOVER, None)
        except _Interrupted:
            return
        except (RelocatorError, OSError) as error:
            self._give_up(error)
            return
        self._tell()
        start("handover", self.afterwards.run)

    def _wait_while(self, holds: Callable[[], bool]) -> None:
        with self._settled:
            while holds() and not self._interrupted:
                self._settled.wait(0.1)
        self._pause(0.0)

    @property
    def _interrupted(self) -> bool:
        return self._withdrawing.is_set() or self._lifecycle.stopping.is_set()

    def _seal(self) -> None:
        """Learn what is stale, of a source that is made to stand still; errors as of `insist`."""
        takeover = self._store.meta.takeover
        if self._sealing is not None and takeover is not None:
            self._sealing.ask(takeover.token, self._pause)

    def _pause(self, delay_s: float) -> None:
        if self._interrupted or self._withdrawing.wait(delay_s) or self._interrupted:
            raise _Interrupted

    def _settle(self) -> dict[str, Any]:
        """The source stands still: drop what is older; what is then known of it."""
        began_s = time.monotonic()
        changes = {} if self._sealing is None else self._sealing.settle()
        self._drop_s = time.monotonic() - began_s
        return changes

    def _note_content(self, changes: dict[str, Any]) -> None:
        """In a hold there is time: note what the source holds, if nothing else tells it for good.

        One that keeps no store has forgotten its seal, and has another id, once it is started
        again. Nobody is let in then until the release; from there on it is known by its content,
        and sealed again (see identity.py).
        """
        if not self._held or self._source is None or changes.get("origin_kept", True):
            return
        with suppress(UpstreamError):  # it is away: it isn't known again, then
            told = samples_at(self._source.endpoint)
            answer = self._source.identify()
            if answer is not None and answer["id"] == changes["origin_id"]:
                changes["origin_samples"] = told

    def _give_up(self, error: Exception) -> None:
        """The source can't be sealed: as before the activation; writes that waited fail."""
        message = f"the disk was not taken over: {error}"
        self._parts.faults.report(HANDOVER, message)
        self._sealed = False
        self._failure = UpstreamError(message)
        with suppress(RelocatorError, OSError):  # the store fails too: later, then
            self._undo()
        self._tell()
        self._give_back_soon()  # the seal's answer may be all that was lost

    @property
    def _has_failed(self) -> bool:
        """Whether an activation has failed, and is not undone yet."""
        return self._failure is not None and self._lifecycle.state is State.ACTIVATING

    def _undo(self) -> None:
        """End an activation that has failed."""
        if self._has_failed:
            self._lifecycle.withdraw(str(self._failure))

    def _give_back(self) -> None:
        """Let the source undo the seal of an activation that was withdrawn, if one was.

        Once it knows, a request for that seal that was on its way meanwhile comes too late. One
        that is not ours has no seal.
        """
        with self._lock:
            self._give_back_locked()

    def _give_back_locked(self) -> None:
        takeover = self._store.meta.takeover
        if takeover is None or not self._owes:
            return
        if self._source is not None and self._is_ours:
            self._let_go(self._source, takeover.token)
        self._lifecycle.note_given_back()
        self._stand_by_locked()

    def _see_given_back_locked(self) -> None:
        """As `_give_back`; its UpstreamError says so of an activation that wants to begin."""
        try:
            self._give_back_locked()
        except UpstreamError as error:
            raise UpstreamError(
                "an earlier activation that failed or was withdrawn is not undone at the source "
                f"yet, which can't be told now: {error}; nothing was taken over, activate again "
                "once the source answers"
            ) from error

    def _stand_by_locked(self) -> None:
        """Be ready for another activation; nobody is owed the end of the last one any more."""
        self._token = new_token()
        start("handover", self._stay_ready)

    def _let_go(self, source: Source, token: str) -> None:
        """Have the source undo the seal `token`, unless it has nothing to do with it.

        Raises:
            UpstreamError: it can't be told, or is another disk: the seal's may be sealed still.
        """
        try:
            answer = source.call(f"withdrawn/{token}")
        except StateError as error:  # it is not sealed, and not ours to unseal
            if (found := source.identify()) is None:
                raise UpstreamError(str(error)) from error
            answer = found
        check_id(self._store.meta, answer)

    def _give_back_soon(self) -> None:
        """As `_give_back`, by a thread, unless one is at it."""
        with self._settled:
            if not self._giving_back:
                self._giving_back = True
                start("handover", self._give_back_later)

    def _give_back_later(self) -> None:
        """As `_give_back`, again until the source answers and the store has noted that."""
        for delay_s in backoff(1.0, limit_s=AGAIN_S):
            if self._lifecycle.stopping.wait(delay_s):
                return
            try:
                with self._lock:
                    self._undo()
                self._give_back()
            except RelocatorError as error:
                of_store = isinstance(error, StoreError)
                what = "that can't be noted" if of_store else "the source can't be told"
                why = f"{self._failure or 'withdrawn'}; {what}: {error}"
                self._parts.faults.report(HANDOVER, why)
            else:
                failure = self._failure  # of the activation: it stays until the next one
                self._parts.faults.report(HANDOVER, None if failure is None else str(failure))
                with self._settled:
                    if not (self._owes or self._has_failed):  # again, meanwhile
                        self._giving_back = False
                        return


class _Interrupted(Exception):
    """The activation has been withdrawn, or the process ends."""
