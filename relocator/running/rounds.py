"""Rounds in standby: the copy is kept in step with a guest that goes on writing at the source.

    round:  the source says what was written -> it is dropped here

When a round is due: at once, as long as each is less than the one before; then every `refresh_s`.
What the source can say, and what becomes of what is dropped, differs: see epochs.py for one that
is a relocator, and recorded.py for one whose QEMU keeps a bitmap. A guest at the source waits for
nothing of that.

`_one` lets one round begin at a time and is held across I/O. What it brings is applied under the
lock that the activation gives, if this is still in standby then: no switch waits for the source.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from relocator.config import REFRESH_S
from relocator.errors import StateError, StoreError, UpstreamError
from relocator.running import states
from relocator.running.parts import HANDOVER, Parts
from relocator.running.states import State

#: a round that leaves more than this of the one before is the last of those at once
_SHRINKS = 0.75
#: so often it is looked whether the source was started again without a store
ANEW_S = 1.0


class Changes(Protocol):
    """What is written at the source, as it says it. Used by one thread at a time."""

    @property
    def absent_blocks(self) -> int:
        """How many blocks the copy ahead still has to bring."""

    @property
    def due(self) -> bool | None:
        """Whether a round makes sense now; None: the first one is needed, even if there are none.

        Raises:
            UpstreamError: the source can't be asked.
        """

    @property
    def begun_anew(self) -> bool:
        """Whether it is not the source any more of which this is the copy, but takes its place.

        Raises:
            UpstreamError: the source can't be asked.
        """

    @property
    def stale_blocks(self) -> int:
        """How many blocks were here and not right any more when it was last looked."""

    def begin(self) -> None:
        """Copying ahead begins."""

    def look(self) -> None:
        """Count what is stale by now.

        Raises:
            UpstreamError: the source can't be asked.
        """

    def drop(self) -> int:
        """Drop what was written at the source since it was copied; how many blocks those were.

        Raises:
            StateError: not in standby any more.
            StoreError: that can't be noted; the next time the same is dropped again.
            UpstreamError: the source can't be asked; nothing has changed.
        """


class Rounds:
    """Keeps a copy in step with `changes`."""

    def __init__(
        self, parts: Parts, changes: Changes, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._parts = parts
        self._store = parts.store
        self._changes = changes
        self._now = now
        self._one = threading.Lock()
        #: seconds between rounds once they shrink no more; None is no rounds
        self.refresh_s = parts.settings.refresh_s
        self._count = 0
        self._began_s: float | None = None  # what the copy is of
        self._bytes_per_s = 0.0  # written at the source in the round before
        self._last_blocks = self._store.geometry.total_blocks
        self._begun = self._holding = False
        self._again_s = 0.0
        self._failing = False
        self._look_s = self._anew_s = 0.0

    @property
    def left_bytes(self) -> int:
        """What the copy ahead has yet to bring: what is absent, or is here and stale."""
        blocks = self._changes.absent_blocks + self._changes.stale_blocks
        return min(blocks, self._store.geometry.total_blocks) * self._store.geometry.block_bytes

    def step(self) -> None:
        """Begin a round if it is time; called now and then, by one thread."""
        if not self._stands_by:
            return
        self._begin_anew()
        if not self._copying:
            return
        if not self._begun:
            self._begun = True
            self._changes.begin()
        self._look()
        if self._now() < self._again_s:
            return
        wait_s = self.refresh_s or REFRESH_S
        try:
            due = self._changes.due
            if not (due is None or (due and self.refresh_s is not None)):
                return
            dropped = self.refresh()["refreshed_blocks"]
        except (StateError, UpstreamError, StoreError) as error:
            if not self._stands_by:
                return  # it moves
            self._again_s = self._now() + wait_s
            self._failing = True
            self._parts.faults.report(HANDOVER, f"the copy is not kept in step: {error}")
            return
        if self._failing:
            self._failing = False
            self._parts.faults.report(HANDOVER, None)
        self._holding = self._holding or not 0 < dropped < self._last_blocks * _SHRINKS
        self._last_blocks = dropped
        self._again_s = self._now() + (wait_s if self._holding else 0.0)

    def _begin_anew(self) -> None:
        """Look now and then whether the copy is of the source's last life: it has to begin anew."""
        if self._now() < self._anew_s:
            return
        self._anew_s = self._now() + ANEW_S
        with suppress(StateError, UpstreamError, StoreError):  # that it is another is told
            if self._changes.begun_anew:
                self.refresh()

    def _look(self) -> None:
        """Where there is a deadline: how much is stale, now and then."""
        transfer, now_s = self._parts.transfer, self._now()
        if transfer is None or not transfer.pacer.has_deadline or now_s < self._look_s:
            return
        self._look_s = now_s + REFRESH_S
        with suppress(UpstreamError):  # it is told elsewhere that the source is lost
            self._changes.look()

    @property
    def _stands_by(self) -> bool:
        """Whether a round would be in time; while a withdrawal is owed the source may be sealed."""
        lifecycle = self._parts.lifecycle
        is_standby = lifecycle.state is State.STANDBY and not lifecycle.stopping.is_set()
        return is_standby and self._store.meta.takeover is None

    @property
    def _copying(self) -> bool:
        transfer = self._parts.transfer
        return transfer is not None and transfer.pacer.running

    @property
    def _left_to_unreadable(self) -> bool:
        transfer = self._parts.transfer
        return transfer is not None and transfer.hydration.background.left_to_unreadable

    def refresh(self) -> dict[str, int]:
        """One round.

        Raises:
            StateError: not in standby.
            StoreError, UpstreamError: as of `Changes.drop`.
        """
        with self._one:
            check_standby(self._parts)
            in_step = self._changes.absent_blocks == 0 or self._left_to_unreadable
            dropped = self._changes.drop()
            now_s = self._now()
            if self._began_s is not None and now_s > self._began_s:
                written = dropped * self._store.geometry.block_bytes
                self._bytes_per_s = written / (now_s - self._began_s)
            self._began_s = now_s
            self._count += in_step
            return {"refreshed_blocks": dropped}

    def status(self) -> dict[str, Any]:
        """How far the copy is behind; part of the status object."""
        behind = behind_s = None
        if self._parts.lifecycle.state is State.STANDBY and self._began_s is not None:
            written = int(self._bytes_per_s * (self._now() - self._began_s))
            behind = min(self._store.geometry.size_bytes, self._store.absent_bytes + written)
            behind_s = self._seconds(behind)
        return {
            "rounds": self._count,
            "refresh_s": self.refresh_s,
            "behind_bytes": behind,
            "behind_s": behind_s,
        }

    def _seconds(self, length: int) -> float | None:
        """How long the link takes for it; None if that isn't known yet."""
        if length == 0:
            return 0.0
        rate = self._parts.transfer.pacer.bytes_per_s if self._parts.transfer else 0.0
        return length / rate if rate else None


def check_standby(parts: Parts) -> None:
    """Refuse a round where it would come too late.

    Raises:
        StateError: not in standby, or about to end.
    """
    states.check(parts.lifecycle.state, "refresh")
    if parts.lifecycle.stopping.is_set():
        raise StateError("'refresh' is refused: the proxy is being stopped")


#: what a disk that never stands by says of it
NO_ROUNDS: dict[str, Any] = {
    "rounds": 0,
    "refresh_s": None,
    "behind_bytes": None,
    "behind_s": None,
}
