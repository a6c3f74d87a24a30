"""The gate every change of the disk passes: so that a seal can be told from a write in progress.

Open, changes pass and are counted. *Held*, they wait: for the instant in which an epoch begins.
*Shut*, they are refused with the reason: the disk is sealed, or not active yet. `held` and `shut`
drain: once no change is in progress any more, the disk stands still.

`_lock` guards the count and the mode; it is never held across I/O.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from relocator.errors import StateError


class Gate:
    """Counts changes in progress; holds or refuses new ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved = threading.Condition(self._lock)
        self._inside = 0
        self._held = False
        self._refusal: str | None = None

    def enter(self) -> None:
        """Begin a change.

        Raises:
            StateError: the gate is shut.
        """
        with self._lock:
            while self._held:
                self._moved.wait()
            if self._refusal is not None:
                raise StateError(self._refusal)
            self._inside += 1

    def leave(self) -> None:
        """End a change."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and (self._held or self._refusal is not None):
                self._moved.notify_all()

    def shut(self, reason: str) -> None:
        """Refuse new changes; returns once none is in progress."""
        with self._lock:
            self._refusal = reason
            while self._inside:
                self._moved.wait()

    def open(self) -> None:
        """Let changes pass."""
        with self._lock:
            self._refusal = None
            self._moved.notify_all()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No change is in progress within the block; new ones wait for its end."""
        with self._lock:
            while self._held:
                self._moved.wait()
            self._held = True
            while self._inside:
                self._moved.wait()
        try:
            yield
        finally:
            with self._lock:
                self._held = False
                self._moved.notify_all()
