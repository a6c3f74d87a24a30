"""The gate every change of the disk passes: so that a seal can be told from a write in progress.

Open, changes pass and are counted. *Paused*, they wait: for the source to be sealed, for the word
on whether a sealed disk moves or stays. *Shut*, they are refused with the reason. `pause` and
`shut` drain: once no change is in progress any more, the disk stands still. `outlast` waits for
those in progress and lets others pass meanwhile: changes are counted in two turns, of which one
runs out.

`_lock` guards the counts and the mode; it is never held across I/O.
"""

import threading
import time

from relocator.errors import StateError


class Gate:
    """Counts changes in progress; lets new ones wait, or refuses them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._inside = [0, 0]
        self._turn = 0
        self._outlasting = threading.Lock()  # one after the other: there are two turns
        self._pause: tuple[str, float | None] | None = None
        self._refusal: str | None = None
        #: seconds that a change waited here, the longest since the disk was last activated
        self.longest_wait_s = 0.0

    def enter(self) -> int:
        """Begin a change, once the gate is not paused; returns its turn.

        Raises:
            StateError: the gate is shut, or was paused for longer than changes may wait.
        """
        with self._lock:
            if self._pause is not None or self._refusal is not None:
                waited_s = self._wait_locked()
                if self._refusal is not None:
                    raise StateError(self._refusal)
                self.longest_wait_s = max(self.longest_wait_s, waited_s)
            self._inside[self._turn] += 1
            return self._turn

    def _wait_locked(self) -> float:
        """Wait while the gate is paused; returns how many seconds that took."""
        began_s = time.monotonic()
        while self._pause is not None:
            self._moved.wait(self._patience_s_locked(began_s))
        return time.monotonic() - began_s

    def _patience_s_locked(self, began_s: float) -> float | None:
        """How long a change that came at `began_s` may still wait; None without limit."""
        if self._pause is None:
            return None
        reason, limit_s = self._pause
        if limit_s is None:
            return None
        left_s = began_s + limit_s - time.monotonic()
        if left_s <= 0:
            raise StateError(f"{reason}; waited {limit_s:g} s")
        return left_s

    def leave(self, turn: int) -> None:
        """End a change of that turn."""
        with self._lock:
            self._inside[turn] -= 1
            if self._inside[turn] == 0 and (turn != self._turn or not self._is_open_locked):
                self._moved.notify_all()

    @property
    def _is_open_locked(self) -> bool:
        return self._pause is None and self._refusal is None

    def pause(self, reason: str, limit_s: float | None = None) -> None:
        """Let new changes wait, each `limit_s` at most; returns once none is in progress."""
        with self._lock:
            self._pause, self._refusal = (reason, limit_s), None
            self._drain_locked()

    def shut(self, reason: str) -> None:
        """Refuse new changes and those that wait; returns once none is in progress."""
        with self._lock:
            self._pause, self._refusal = None, reason
            self._drain_locked()

    def open(self) -> None:
        """Let changes pass."""
        with self._lock:
            self._pause = self._refusal = None
            self._moved.notify_all()

    def outlast(self) -> None:
        """Return once the changes in progress have ended; others pass meanwhile."""
        with self._outlasting, self._lock:
            old, self._turn = self._turn, 1 - self._turn
            while self._inside[old]:
                self._moved.wait()

    def _drain_locked(self) -> None:
        self._moved.notify_all()  # who waits has to look at the mode again
        while any(self._inside):
            self._moved.wait()
