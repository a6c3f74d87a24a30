"""The life of a disk: its state, and what follows from the state, in one place.

A transition is legal by the table in states.py. It is made durable before anybody sees it: writes
stop if the new state refuses them, metadata follow what was written so far, and only then the state
changes and with it everything derived from it:

    gate          refuses writes in standby, sealed and relaying
    pass_through  reads go to the source and nothing is kept: standby
    all_here      reads need no maps: complete and sealed
    role          proxy while there is an upstream, else target

If metadata can't be made durable the disk stays what it was, and accepts writes as before.

`_lock` makes a transition one step, together with what is checked for it. It is held across I/O and
while writes in progress drain; no guest's read or write ever waits for it.
"""

import threading
from typing import Any

from relocator.errors import StateError
from relocator.running import states
from relocator.running.gate import Gate
from relocator.running.states import Role, State
from relocator.store.meta import Meta, new_token
from relocator.store.store import Store

_MOVED_ON = "sealed: the disk has moved to another site"
_REFUSALS = {
    State.STANDBY: "standby: the disk is still active at its source; activate first",
    State.SEALED: _MOVED_ON,
    State.RELAYING: _MOVED_ON,
}


class Lifecycle:
    """State of the disk in `store`; the only writer of it."""

    state: State
    pass_through: bool
    all_here: bool

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.gate = Gate()
        #: set by the engine once all is here, that is durable, and the source has been let go
        self.finished = threading.Event()
        #: set once the process is about to end
        self.stopping = threading.Event()
        self._enter_locked(_state_of(store.meta))
        if self.all_here:
            self.finished.set()

    @property
    def unfinished(self) -> bool:
        """Whether blocks are still fetched from upstream."""
        return self.state in states.UNFINISHED

    @property
    def role(self) -> Role:
        """A disk that has an upstream is a proxy; once complete it is a target."""
        return Role.PROXY if self.unfinished else Role.TARGET

    def begin_epoch(self) -> None:
        """Begin the dirty map anew, at an instant at which no write is in progress."""
        with self._lock, self.gate.held():
            self._store.begin_epoch()

    def activate(self, **changes: Any) -> None:
        """The source has given the disk up: let the VM write here. `changes` are of `Meta`."""
        with self._lock:
            self._change_locked("activate", standby=False, **changes)

    def complete(self) -> None:
        """The last block has arrived."""
        with self._lock:
            self._change_locked("last-block-arrived", complete=True)

    def seal(self) -> None:
        """Refuse writes from here on; all that were acknowledged are durable. Again: no change."""
        with self._lock:
            if self._store.meta.seal is None:
                self._change_locked("seal", seal=new_token(), moved=False)

    def note_moved(self) -> None:
        """The proxy that sealed this disk is active: the seal can't be undone any more.

        Raises:
            StateError: the disk is not sealed.
        """
        with self._lock:
            states.check(self.state, "moved")
            self._store.update(moved=True)

    def unseal(self) -> None:
        """Undo a seal.

        Raises:
            StateError: a proxy is active: it may have accepted writes already.
        """
        with self._lock:
            if self._store.meta.moved:
                raise StateError("'unseal' is refused: a proxy is active with this disk")
            self._change_locked("unseal", seal=None)

    def _change_locked(self, event: str, **changes: Any) -> None:
        """One transition, durable. Changes nothing if it raises."""
        after = states.after(self.state, event)
        if (refusal := _REFUSALS.get(after)) is not None:
            self.gate.shut(refusal)
        try:
            self._store.update(**changes)
        except BaseException:
            self._enter_locked(self.state)
            raise
        self._enter_locked(after)

    def _enter_locked(self, state: State) -> None:
        """Set the state and all that is derived from it; the gate last."""
        self.state = state
        self.pass_through = state is State.STANDBY
        self.all_here = not self.unfinished
        if (refusal := _REFUSALS.get(state)) is None:
            self.gate.open()
        else:
            self.gate.shut(refusal)


def _state_of(meta: Meta) -> State:
    """The state a disk is opened in."""
    if meta.complete:
        return State.COMPLETE if meta.seal is None else State.SEALED
    if meta.seal is not None:
        return State.RELAYING
    return State.STANDBY if meta.standby else State.ACTIVE
