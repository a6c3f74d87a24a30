"""What happened in a run, when: notes with the seconds since its beginning, and named states."""

import time
from typing import Any

#: what a long campaign must have met at least once
STATES = (
    "source killed while sealing",
    "destination killed while sealing",
    "cut while sealing",
    "cut in a round",
    "power failure while copying",
    "power failure between data and map",
    "power failure at a source that has moved",
    "power failure between two lives",
    "an image written by something else",
    "another disk at the source's address",
    "killed on the way back",
    "power failure on the way back",
    "killed while relaying",
    "withdrawn",
    "a store full",
    "a store failing",
)
#: not ours, and no promise broken: nbdkit before 1.34 may do that where several threads send to one
#: client, as a proxy's do; its service manager starts it again (docs/operators.md, "nbdkit aborts")
ABORTED = "a proxy aborted by nbdkit itself"


class Failed(Exception):
    """The run has failed: a promise was broken, or it doesn't go on."""


class Journal:
    """Notes and states of one run, and what was found wrong."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.notes: list[list[Any]] = []
        self.reached: dict[str, float] = {}
        self.wrong: list[str] = []

    def begin(self) -> None:
        """All stands: the events' time begins."""
        self.began_s = time.monotonic()
        self.notes.clear()

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    def note(self, what: str, **more: Any) -> None:
        """Something happened."""
        self.notes.append([round(self.now_s, 4), what, more])

    def reach(self, state: str) -> None:
        """One of the states that a campaign counts."""
        if state not in self.reached:
            self.reached[state] = round(self.now_s, 3)
            self.note("state", name=state)

    def blame(self, what: str) -> None:
        """A promise was broken."""
        if len(self.wrong) < 10:
            self.wrong.append(f"{self.now_s:.3f} s: {what}")
            self.note("wrong", text=what)
