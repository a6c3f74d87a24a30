"""The source's holes (`base:allocation`): they become present here without being transferred.

The disk is asked about in steps of `STEP_BYTES`, `AHEAD` steps before the copy needs them, so that
no round trip is waited for in the middle of the copy; all of it at once where it matters how much
is still to come. A source that can't tell has no holes.
What it said before its answers were disowned (it may have been written since) is asked again. So is
a step of which `AGAIN_BYTES` became stale since: the source's guest may have trimmed them.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from relocator.copying.hydration import LOOK_EVERY_S, Hydration
from relocator.source.upstream import Request, Upstream
from relocator.store.store import Store

STEP_BYTES = 1 << 30
AGAIN_BYTES = 16 << 20
AHEAD = 2
_HOLE_AND_ZERO = 3  # NBD_STATE_HOLE | NBD_STATE_ZERO


@dataclass(eq=False)
class Step:
    """One step's answer: extents `(offset, length)` in bytes that read as zero.

    `asked` is the hydration's `disowned` when the source was asked.
    """

    offset: int
    end: int
    asked: int
    answered: threading.Event = field(default_factory=threading.Event)
    zeros: list[tuple[int, int]] = field(default_factory=list)


class Holes:
    """Asks the source and fills; used by one thread, answers arrive on the connection's.

    `at_once` says whether the whole disk is to be asked about before anything is copied; once it is
    all `over` nothing is waited for.
    """

    def __init__(
        self,
        store: Store,
        upstream: Upstream,
        hydration: Hydration,
        *,
        over: Callable[[], bool] = lambda: False,
        at_once: Callable[[], bool] = lambda: False,
    ) -> None:
        self._at_once = at_once
        self._over = over
        self._store = store
        self._upstream = upstream
        self._hydration = hydration
        self._steps: dict[int, Step] = {}
        #: of each step, what `disowned` was when it was filled, or looked at; None: it was not
        self._filled: list[int | None] = [None] * -(-store.geometry.size_bytes // STEP_BYTES)
        self._never_filled = len(self._filled)

    def fill(self, first: int, end: int) -> None:
        """Make the holes among the blocks `first..end` present; may wait for the source."""
        if self._never_filled and self._at_once():
            first, end = 0, self._store.geometry.total_blocks
        offset, length = self._store.geometry.extent(first, end)
        last = (offset + length - 1) // STEP_BYTES
        for index in range(offset // STEP_BYTES, last + 1 + AHEAD):
            self._ask(index)
        for index in range(offset // STEP_BYTES, last + 1):
            while not self._is_filled(index):
                self._ask(index)
                if (step := self._steps.pop(index, None)) is None:
                    continue  # blocks have come since: it is good enough now
                while not step.answered.wait(LOOK_EVERY_S):
                    if self._over():  # what is not here any more came another way
                        return
                if self._fill(step):
                    self._never_filled -= self._filled[index] is None
                    self._filled[index] = step.asked

    def _is_filled(self, index: int) -> bool:
        """Whether what the source has said of a step is still good enough."""
        filled, disowned = self._filled[index], self._hydration.disowned
        if filled is None or filled == disowned:
            return filled is not None
        offset, end = self._bounds(index)
        _, first, last = self._store.geometry.split(offset, end - offset)
        absent_blocks = last - first - self._store.present.count(first, last)
        if absent_blocks * self._store.geometry.block_bytes >= AGAIN_BYTES:
            return False
        self._filled[index] = disowned
        return True

    def _bounds(self, index: int) -> tuple[int, int]:
        """Where a step begins and ends, in bytes."""
        offset = index * STEP_BYTES
        return offset, min(offset + STEP_BYTES, self._store.geometry.size_bytes)

    def _ask(self, index: int) -> None:
        offset, end = self._bounds(index)
        if offset >= end or index in self._steps or self._is_filled(index):
            return
        step = self._steps[index] = Step(offset, end, self._hydration.disowned)
        self._upstream.block_status(offset, end - offset, lambda reply: self._answer(step, reply))

    def _answer(self, step: Step, reply: Request) -> None:
        """Note an answer; one that stops early is asked on from there."""
        at = reply.offset
        for length, flags in reply.runs:
            if flags & _HOLE_AND_ZERO == _HOLE_AND_ZERO:
                step.zeros.append((at, length))
            at += length
        if reply.error is not None or at == reply.offset or at >= step.end:
            step.answered.set()
        else:
            self._upstream.block_status(at, step.end - at, lambda reply: self._answer(step, reply))

    def _fill(self, step: Step) -> bool:
        """Fill the holes; whether the answer was still true."""
        geometry = self._store.geometry
        for offset, length in step.zeros:
            _, first, end = geometry.split(offset, min(length, step.end - offset))
            if first < end and not self._hydration.fill_hole(first, end, step.asked):
                return False
        return True
