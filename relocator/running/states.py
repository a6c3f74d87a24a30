"""Roles, states and verbs as data: which verb is legal when.

`docs/states.md` draws this; the tables below are what runs. A refusal names the state and the verb.
"""

from enum import StrEnum

from relocator.errors import StateError
from relocator.store.meta import Meta


class Role(StrEnum):
    """What the plugin is at the moment: a proxy becomes a target when its last block arrives."""

    TARGET = "target"
    PROXY = "proxy"


class State(StrEnum):
    """Where a disk is in its life.

    A proxy is standby, active, complete: before, during and after the relocation; activating, from
    the word that the VM moves until the source has been sealed. A disk is sealed once it has moved
    on; relaying, if it moved on before it was complete itself. It is outdated once the source was
    unsealed by force, and goes on without what was written here.
    """

    STANDBY = "standby"
    ACTIVATING = "activating"
    ACTIVE = "active"
    COMPLETE = "complete"
    SEALED = "sealed"
    RELAYING = "relaying"
    OUTDATED = "outdated"


#: state -> event -> state after it
TRANSITIONS: dict[State, dict[str, State]] = {
    State.STANDBY: {"activate": State.ACTIVATING},
    State.ACTIVATING: {"source-sealed": State.ACTIVE, "withdraw": State.STANDBY},
    State.ACTIVE: {
        "last-block-arrived": State.COMPLETE,
        "seal": State.RELAYING,
        "withdraw": State.STANDBY,
        "source-unsealed": State.OUTDATED,
    },
    State.COMPLETE: {"seal": State.SEALED, "source-unsealed": State.OUTDATED},
    State.SEALED: {
        "unseal": State.COMPLETE,
        "seal": State.SEALED,
        "source-unsealed": State.OUTDATED,
    },
    State.RELAYING: {
        "unseal": State.ACTIVE,
        "seal": State.RELAYING,
        "last-block-arrived": State.SEALED,
        "source-unsealed": State.OUTDATED,
    },
    State.OUTDATED: {},
}

#: States in which blocks are still fetched from upstream.
UNFINISHED = frozenset({State.STANDBY, State.ACTIVATING, State.ACTIVE, State.RELAYING})
#: States in which the disk is still the source's: reads pass through to it.
PASSING = frozenset({State.STANDBY, State.ACTIVATING})
#: States of a disk that has every block; one that is sealed has moved on to another site since.
ALL_HERE = frozenset({State.COMPLETE, State.SEALED})
_COPYING = UNFINISHED
_SETTLED = frozenset(State) - PASSING - {State.OUTDATED}

#: verb -> states in which it may be used
LEGAL: dict[str, frozenset[State]] = {
    "status": frozenset(State),
    "map": frozenset(State),
    "wait": frozenset(State),
    "flush": frozenset(State),
    "identify": frozenset(State),
    "pause": _COPYING,
    "resume": _COPYING,
    "set": _COPYING,
    "measure": _COPYING,
    "reserve": frozenset(State) - {State.SEALED, State.RELAYING},
    "refresh": frozenset({State.STANDBY}),
    "activate": frozenset({State.STANDBY, State.ACTIVATING, State.ACTIVE, State.COMPLETE}),
    "release": frozenset({State.ACTIVATING, State.ACTIVE, State.COMPLETE}),
    "withdraw": frozenset({State.STANDBY, State.ACTIVATING, State.ACTIVE}),
    "epoch": _SETTLED,
    "seal": _SETTLED,
    "moved": frozenset({State.SEALED, State.RELAYING}),
    "unseal": frozenset({State.SEALED, State.RELAYING}),
    # also where nothing is sealed: a request for that seal may still arrive
    "withdrawn": _SETTLED | PASSING,
    "verify": _SETTLED,
}


def state_of(meta: Meta) -> State:
    """The state a disk is opened in."""
    if meta.outdated:
        return State.OUTDATED
    if meta.complete:
        return State.COMPLETE if meta.seal is None else State.SEALED
    if meta.seal is not None:
        return State.RELAYING
    if meta.takeover is not None and not meta.takeover.withdrawn:
        return State.ACTIVATING
    return State.STANDBY if meta.standby else State.ACTIVE


def after(state: State, event: str) -> State:
    """The state that `event` leads to.

    Raises:
        StateError: the event can't happen in `state`.
    """
    if event not in TRANSITIONS[state]:
        raise StateError(f"{event} can't happen in state {state}")
    return TRANSITIONS[state][event]


def check(state: State, verb: str) -> None:
    """Refuse `verb` unless it is legal in `state`.

    Raises:
        StateError: it is unknown, or not legal now.
    """
    if verb not in LEGAL:
        raise StateError(f"unknown verb '{verb}'; known: {', '.join(sorted(LEGAL))}")
    if state not in LEGAL[verb]:
        allowed = ", ".join(sorted(LEGAL[verb]))
        raise StateError(f"'{verb}' is refused in state '{state}'; it needs: {allowed}")
