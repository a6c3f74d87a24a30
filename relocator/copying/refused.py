"""What the source has failed to read: left for last, then asked for in halves, down to a block.

So a disk with a bad sector is copied but for that sector, and nothing else waits for it. A block
that was refused by itself is asked for again after a second, then twice as long each time, up to
`AGAIN_S`: it was a passing trouble, or what is written at the source mends it. Guests' own reads
ask at once, as ever.

Called under the store's lock.
"""

import heapq
from collections import deque

from relocator.store.bitmap import Bitmap

Range = tuple[int, int]
FIRST_S, AGAIN_S = 1.0, 60.0


class Refused:
    """Of a disk of `total_blocks`. Times are in seconds of any clock that only goes on."""

    def __init__(self, total_blocks: int) -> None:
        self._total_blocks = total_blocks
        #: blocks that are not asked for now; None if there never were any
        self.blocks: Bitmap | None = None
        self._runs: deque[Range] = deque()
        self._halves: deque[Range] = deque()
        self._single: list[tuple[float, int]] = []  # a heap: when to ask for which
        self._delays_s: dict[int, float] = {}  # of each the next
        self._at_s: dict[int, float] = {}  # of each when; another entry in the heap is an old one

    def note(self, first: int, end: int, now_s: float) -> None:
        """A read of these blocks failed."""
        if self.blocks is None:
            self.blocks = Bitmap(self._total_blocks)
        self.blocks.set(first, end)
        if end - first > 1:
            self._runs.append((first, end))
        else:
            delay_s = self._delays_s.get(first, FIRST_S)
            self._delays_s[first] = min(delay_s * 2, AGAIN_S)
            self._at_s[first] = now_s + delay_s
            heapq.heappush(self._single, (now_s + delay_s, first))

    def due(self, now_s: float) -> Range | None:
        """What is to be asked for again next; until that is noted, it has never failed."""
        if self.blocks is None:
            return None
        if self._runs:
            first, end = self._runs.popleft()
            self._halves += [(first, (first + end) // 2), ((first + end) // 2, end)]
        if self._halves:
            found = self._halves.popleft()
        elif (block := self._next_single(now_s)) is not None:
            found = block, block + 1
        else:
            return None
        self.blocks.clear(*found)
        return found

    def _next_single(self, now_s: float) -> int | None:
        while self._single and self._single[0][0] <= now_s:
            at_s, block = heapq.heappop(self._single)
            if self._at_s.get(block) == at_s:
                del self._at_s[block]
                return block
        return None

    def is_due(self, now_s: float) -> bool:
        """Whether something may be."""
        return not self.by_block or bool(self._single and self._single[0][0] <= now_s)

    @property
    def by_block(self) -> bool:
        """Whether all of it has been asked for block by block, or is being."""
        return not self._runs and not self._halves

    def has_failed(self, block: int) -> bool:
        """Whether the block was refused by itself."""
        return block in self._delays_s

    def asked(self, first: int, end: int) -> None:
        """These are being asked for again, and still refused until they come."""
        if self.blocks is not None:
            self.blocks.set(first, end)

    def forget(self, first: int, end: int) -> bool:
        """These have come; whether some of them were refused before."""
        if self.blocks is None:
            return False
        for block in range(first, end) if self._delays_s else ():
            self._delays_s.pop(block, None)
            self._at_s.pop(block, None)
        return self.blocks.clear(first, end) > 0

    def absent(self, present: Bitmap) -> tuple[int, int]:
        """How many of them are still absent, and the first of those; (0, 0) if none is."""
        if self.blocks is None:
            return 0, 0
        runs = [
            absent
            for refused in self.blocks.set_runs(0, self._total_blocks)
            for absent in present.clear_runs(*refused)
        ]
        return sum(end - first for first, end in runs), runs[0][0] if runs else 0
