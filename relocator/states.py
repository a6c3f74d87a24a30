"""Roles, states and verbs as data: which verb is legal when.

`docs/states.md` draws this; the tables below are what runs. A refusal names the state and the verb.
"""

from enum import StrEnum

from relocator.errors import StateError


class Role(StrEnum):
    """What the plugin is at the moment: a proxy becomes a target when its last block arrives."""

    TARGET = "target"
    PROXY = "proxy"


class State(StrEnum):
    """Where a disk is in its relocation. A target is always complete."""

    ACTIVE = "active"
    COMPLETE = "complete"


#: state -> event -> state after it
TRANSITIONS: dict[State, dict[str, State]] = {
    State.ACTIVE: {"last-block-arrived": State.COMPLETE},
    State.COMPLETE: {},
}

#: verb -> states in which it may be used
LEGAL: dict[str, frozenset[State]] = {
    "status": frozenset(State),
    "wait": frozenset(State),
    "flush": frozenset(State),
    "pause": frozenset({State.ACTIVE}),
    "resume": frozenset({State.ACTIVE}),
    "set": frozenset({State.ACTIVE}),
}


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
