"""The life of a disk: its state, and what follows from the state, in one place.

A transition is legal by the table in states.py. It is made durable before anybody sees it: writes
stop if the new state refuses them, metadata follow what was written so far, and only then the state
changes and with it everything derived from it:

    gate          refuses writes in standby; lets them wait while activating, and while a seal may
                  still be undone; refuses them once the disk has moved
    pass_through  reads go to the source and nothing is kept: standby and activating
    all_here      reads need no maps: complete and sealed
    role          proxy while there is an upstream, else target

If metadata can't be made durable the disk stays what it was, and accepts writes as before.

`_lock` makes a transition one step, together with what is checked for it. It is held across I/O and
while writes in progress drain; no guest's read or write ever waits for it.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from relocator.errors import StateError
from relocator.running import states
from relocator.running.gate import Gate
from relocator.running.states import Role, State
from relocator.store import meta as metadata
from relocator.store.bitmap import Bitmap
from relocator.store.meta import Takeover, new_token
from relocator.store.store import Store

_WRITABLE = frozenset({State.ACTIVE, State.COMPLETE})
#: so long a write waits at a sealed disk for word on whether it moves or stays
SEALED_PATIENCE_S = 60.0
#: so many withdrawn seals are remembered: of activations whose requests may still arrive
_VOID_SEALS = 16
_ELSEWHERE = "standby: the disk is still active at its source; activate first"
_ACTIVATING = "activating: the source has not been sealed yet"
_ENDING = "flushed for the last time: this server is about to be killed"
_SEALED = "sealed: the disk is about to move to another site"
_MOVED_ON = "sealed: the disk has moved to another site"
OUTDATED = (
    "outdated: the source was unsealed by force and goes on without what was written here, so the "
    "disk has two versions; this one refuses writes (see 'Two versions' in docs/operators.md)"
)
_TAKEN = (
    "the disk is sealed for another proxy, which may be active with it (`relocator withdraw` there "
    "gives it back if nothing was written; if that proxy is lost, `relocator unseal --force` here)"
)
_UNSEALED: dict[str, Any] = {"seal": None, "asked": False, "moved": False}
_INSTEAD = (
    "`relocator withdraw` there gives the disk back if nothing was written; `relocator unseal "
    "--force` here goes on without what was written there"
)


class Lifecycle:
    """State of the disk in `store`; the only writer of it."""

    state: State
    pass_through: bool
    all_here: bool

    def __init__(self, store: Store, patience_s: float = SEALED_PATIENCE_S) -> None:
        self._store = store
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self.gate = Gate()
        #: somebody has said whether the VM moves here: from then on its writes don't say so
        self.told = False
        #: how often what is here ceased to be what its readers take it for (see sessions.py)
        self.breaks = 0
        #: set by the engine once all is here, that is durable, and the source has been let go
        self.finished = threading.Event()
        #: set once the process is about to end
        self.stopping = threading.Event()
        self._enter_locked(states.state_of(store.meta))
        if self.all_here:
            self.finished.set()

    @property
    def unfinished(self) -> bool:
        """Whether blocks are absent, and fetched from upstream."""
        if self.state is State.OUTDATED:
            return not self._store.meta.complete
        return self.state in states.UNFINISHED

    @property
    def outdated(self) -> bool:
        """Whether the source goes on with another version of the disk."""
        return self.state is State.OUTDATED

    @property
    def role(self) -> Role:
        """A disk that has an upstream is a proxy; once complete it is a target."""
        return Role.PROXY if self.unfinished else Role.TARGET

    def begin_epoch(self, known: int | None = None) -> tuple[int, Bitmap | None]:
        """Begin the dirty map anew; returns the new epoch, and what was dirty in the ended one.

        Writes go on. Those that may be in the ended map only have ended when this returns. With
        `known`, the epoch that the caller knows of, none is begun if nothing is dirty in that. Nor
        is one on a sealed disk, where the map is the seal's, and grows no more: None was ended.

        Raises:
            StateError: the disk is sealed, and `known` is not None.
        """
        with self._lock:
            if self._store.meta.seal is not None:
                if known is not None:
                    raise StateError("'epoch' is refused: the disk is sealed")
                return self._store.meta.epoch, None
            if known == self._store.meta.epoch and self._store.dirty_blocks == 0:
                return known, Bitmap(self._store.geometry.total_blocks)
            ended, epoch = self._store.begin_epoch(), self._store.meta.epoch
        self.gate.outlast()
        return epoch, ended

    def begin_activation(self, takeover: Takeover, *, by_write: bool = False) -> None:
        """The VM moves here: its writes wait from now on until the source has been sealed.

        `by_write`: nobody has said so. Once somebody has, or has given the disk back, this is
        refused: a write that waited meanwhile would take a disk whose VM goes on at its source.
        """
        with self._lock:
            if by_write and self.told:
                raise StateError(_ELSEWHERE)
            self.told = self.told or not by_write
            self._change_locked("activate", takeover=takeover)

    def go_on_activating(self) -> None:
        """Writes wait for the seal, also where they were refused since the last try had failed."""
        with self._lock:
            if self.state is State.ACTIVATING:
                self._set_gate_locked(self.state)

    def release(self) -> None:
        """Writes wait for nothing but the source's seal."""
        with self._lock:
            takeover = self._store.meta.takeover
            if takeover is not None and takeover.held:
                self._store.update(takeover=replace(takeover, held=False))

    def activate(self, **changes: Any) -> None:
        """The source has given the disk up: let the VM write here. `changes` are of `Meta`.

        It is a new epoch: should this disk have been active before, and been given back, the source
        was written since, and what another site has copied from here rests on nothing any more.
        """
        with self._lock:
            changes["epoch"] = self._store.meta.epoch + 1
            self._change_locked("source-sealed", standby=False, takeover=None, **changes)

    def withdraw(self, why: str | None = None) -> None:
        """The disk stays at its source: writes that wait here fail, with `why`.

        Raises:
            StateError: something was written here.
            StoreError: that can't be made durable; with `why`, writes fail nevertheless.
        """
        with self._lock:
            self.told = self.told or why is None
            if self.state is State.STANDBY:
                return
            states.after(self.state, "withdraw")
            self.gate.pause("withdraw: whether something was written here is looked at")
            try:
                self._check_unwritten_locked()
                self._store.update(**metadata.given_back(self._store.meta))
            except BaseException:
                self._enter_locked(self.state, why)
                raise
            self._enter_locked(State.STANDBY, why)

    def note_given_back(self) -> None:
        """The source knows of the withdrawal, or has nothing to do with it."""
        with self._lock:
            if self.state is State.STANDBY:
                self._store.update(takeover=None)

    def _check_unwritten_locked(self) -> None:
        diverged = self._store.diverged
        if written := diverged.count(0, diverged.bits):
            raise StateError(
                f"'withdraw' is refused: {written} blocks were written here (a write that failed "
                "counts, too); relocate the disk back instead"
            )

    def complete(self) -> None:
        """The last block has arrived.

        Raises:
            StateError: not all blocks are here any more: the disk was given back meanwhile.
        """
        with self._lock:
            if not self._store.all_present:
                raise StateError("'complete' is refused: blocks are absent")
            self._change_locked("last-block-arrived", complete=True)

    def seal(self, token: str | None = None, *, asked: bool = False) -> None:
        """Let no write pass from here on; all that were acknowledged are durable.

        `token` is to be the seal's name, also of a seal that nobody has asked for yet. One that was
        asked for stays: whoever gave it its name may be active with the disk.
        `asked`: it is another site that wants it, and that may go on with the disk.

        Raises:
            StateError: the seal of that name was undone: this request was late. Or another site has
                asked for the seal that there is, also if this one doesn't say a name.
        """
        with self._lock:
            states.check(self.state, "seal")
            if token is not None and token in self._store.meta.void_seals:
                raise StateError("'seal' is refused: the activation that asks for it was withdrawn")
            if self._store.meta.seal is None:
                made = token or new_token()
                self._change_locked("seal", seal=made, asked=asked, moved=False)
            elif asked and not self._store.meta.asked:
                self._store.update(asked=True, seal=token or self._store.meta.seal)
            elif asked and token != self._store.meta.seal:
                raise StateError(f"'seal' is refused: {_TAKEN}")

    def note_moved(self, token: str | None = None) -> None:
        """The proxy that took the disk over by the seal `token` is active.

        Raises:
            StateError: the disk is not sealed, or by another seal.
        """
        with self._lock:
            states.check(self.state, "moved")
            if token not in (None, self._store.meta.seal):
                raise StateError("'moved' is refused: the disk is sealed for somebody else")
            if not self._store.meta.moved:
                self._store.update(moved=True, asked=True)
                self._set_gate_locked(self.state)

    def unseal(self, *, force: bool = False) -> dict[str, bool]:
        """Undo a seal. With `force` also one that a proxy asked for, which is then outdated.

        Returns whether it had been `asked` for, and whether the proxy had said that it `moved`.

        Raises:
            StateError: a proxy may have accepted writes already.
        """
        with self._lock:
            meta = self._store.meta
            states.check(self.state, "unseal")
            if meta.moved and not force:
                raise StateError(
                    f"'unseal' is refused: a proxy is active with this disk. {_INSTEAD}"
                )
            if meta.asked and not force:
                raise StateError(
                    "'unseal' is refused: a proxy has asked for this seal and may be active with "
                    f"the disk. {_INSTEAD}"
                )
            assert meta.seal is not None
            void = self._void_locked(meta.seal)
            self._change_locked("unseal", meta.asked, **_UNSEALED, void_seals=void)
            return {"asked": meta.asked, "moved": meta.moved}

    def note_withdrawn(self, token: str) -> bool:
        """The proxy that made the seal `token` gives the disk back; whether it was sealed so."""
        with self._lock:
            states.check(self.state, "withdrawn")
            void = self._void_locked(token)
            if self._store.meta.seal != token:
                self._store.update(void_seals=void)
                return False
            self._change_locked("unseal", **_UNSEALED, void_seals=void)
            return True

    def stand_still(self) -> None:
        """Let no write pass any more at a disk that is all here: this process is to be killed.

        Nor does one if the disk is sealed and unsealed meanwhile.

        Raises:
            StoreError: what was written can't be made durable; writes go on.
        """
        with self._lock:
            if self.state not in (State.COMPLETE, State.SEALED):
                return
            if self.state is State.COMPLETE:
                self.gate.pause(_ENDING)
            try:
                self._store.note_written()
            except BaseException:
                self._enter_locked(self.state)
                raise

    def reserve(self) -> None:
        """Make room for the whole image; as far as its file system says, that writes it.

        Raises:
            StateError: when it was written last may have been noted for the next process.
            StoreError: there is no room, or the file system can't.
        """
        with self._lock:
            states.check(self.state, "reserve")
            if self._store.still:
                raise StateError(f"'reserve' is refused: {_ENDING}")
            self._store.image.reserve()

    def note_outdated(self, seal: str | None, tell: Callable[[], None] = lambda: None) -> None:
        """The source has undone `seal` by force, and goes on with another version of the disk.

        `tell` says so before the state does: writes in progress may keep that for seconds. No
        write passes here any more, also if that can't be made durable: the next process is told
        again. Nothing, if the disk is not held by that seal: then it was given back meanwhile.
        """
        with self._lock:
            if self.state is State.OUTDATED or seal != self._store.meta.origin_seal:
                return
            after = states.after(self.state, "source-unsealed")
            tell()
            self.breaks += 1
            self._enter_locked(after)
            self._store.update(outdated=True)

    def _void_locked(self, token: str) -> tuple[str, ...]:
        """The tokens that are void once the seal `token` is withdrawn."""
        known = self._store.meta.void_seals
        return known if token in known else (*known, token)[-_VOID_SEALS:]

    def _change_locked(self, event: str, breaks: bool = False, **changes: Any) -> None:
        """One transition, durable; with `breaks`, who reads has to look anew before a write passes.

        Changes nothing if it raises.
        """
        after = states.after(self.state, event)
        if after not in _WRITABLE:
            self._set_gate_locked(after)
        try:
            self._store.update(**changes)
        except BaseException:
            self._enter_locked(self.state)
            raise
        self.breaks += breaks
        self._enter_locked(after)

    def _enter_locked(self, state: State, why: str | None = None) -> None:
        """Set the state and all that is derived from it; the gate last."""
        self.state = state
        self.pass_through = state in states.PASSING
        self.all_here = not self.unfinished
        self._set_gate_locked(state, why)

    def _set_gate_locked(self, state: State, why: str | None = None) -> None:
        """Let writes pass, wait, or fail as `state` wants it.

        `why` they fail in standby, or where an activation failed and that can't be made durable.
        """
        if state in _WRITABLE and self._store.still:
            self.gate.pause(_ENDING)
        elif state in _WRITABLE:
            self.gate.open()
        elif state is State.STANDBY:
            self.gate.shut(why or _ELSEWHERE)
        elif state is State.OUTDATED:
            self.gate.shut(OUTDATED)
        elif state is State.ACTIVATING and why is not None:
            self.gate.shut(why)
        elif state is State.ACTIVATING:
            self.gate.pause(_ACTIVATING)
        elif self._store.meta.moved:
            self.gate.shut(_MOVED_ON)
        else:
            self.gate.pause(_SEALED, self._patience_s)
