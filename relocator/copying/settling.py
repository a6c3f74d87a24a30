"""Ranges of the plan between the seeding and the copier: each waits until its units are settled.

`_lock` guards the ranges. It is never held across I/O, nor while the pacer is told.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from relocator.copying.pacer import Pacer
from relocator.store.bitmap import Bitmap
from relocator.store.store import Store

Range = tuple[int, int]
#: how far the seeding may be ahead of the copier: bytes, and ranges
AHEAD_BYTES, AHEAD_RANGES = 64 << 20, 4096


class Settling:
    """Ranges of `store`'s blocks in units of `unit_bytes`; who waits is woken by `pacer`."""

    def __init__(self, store: Store, pacer: Pacer, unit_bytes: int) -> None:
        self._geometry = store.geometry
        self._present = store.present
        self._pacer = pacer
        self._unit_blocks = unit_bytes // store.geometry.block_bytes
        self._settled = Bitmap(-(-store.geometry.size_bytes // unit_bytes))
        self._lock = threading.Lock()
        self._ahead: deque[Range] = deque()
        self._bytes = 0
        self._wanted: deque[Range] = deque()
        #: whether a range may have been settled since that was looked at
        self._news = False
        #: whether no more comes
        self.ended = False

    def units(self, blocks: Range) -> Range:
        """The units that have some of the blocks."""
        return blocks[0] // self._unit_blocks, -(-blocks[1] // self._unit_blocks)

    def want(self, first: int, end: int) -> bool:
        """Let these blocks be next; False if no more comes. From any thread; never waits."""
        with self._lock:
            if self.ended:
                return False
            if (first, end) not in self._wanted:
                self._wanted.append((first, end))
        self._pacer.wake()
        return True

    def take(self, look: Callable[[int], None]) -> Iterator[Range]:
        """The ranges, each as soon as it is settled, for the copier's thread; waits for them.

        `look` is called with each of a range's units before.
        """
        while self._pacer.wait_until(lambda: self.ended or self._news):
            self._news = False
            if (found := self._next()) is None:
                if self.ended:
                    return
                continue
            self._news = True  # there may be more
            for unit in range(*self.units(found)):
                look(unit)
            with self._lock:
                if found in self._ahead:
                    self._ahead.remove(found)
                    self._bytes -= self._length(found)
            self._pacer.wake()  # there is room again
            yield found

    def _next(self) -> Range | None:
        """The first range that is settled."""
        ahead = tuple(self._ahead)
        return next((one for one in ahead if self._settled.all(*self.units(one))), None)

    def _length(self, blocks: Range) -> int:
        return self._geometry.extent(*blocks).length

    # Below this line everything is the seeding thread's.

    @property
    def empty(self) -> bool:
        """Whether the copier has taken all there is, and nothing is wanted."""
        return not self._ahead and not self._wanted

    @property
    def wants(self) -> bool:
        """Whether something is wanted next."""
        return bool(self._wanted)

    @property
    def has_room(self) -> bool:
        """Whether one more range may be added."""
        return self._bytes < AHEAD_BYTES and len(self._ahead) < AHEAD_RANGES

    def wanted(self) -> Iterable[Range]:
        """What is wanted next; it is forgotten by that."""
        with self._lock:
            wanted, self._wanted = self._wanted, deque()
        return wanted

    def clear(self) -> None:
        """Forget the ranges; what is settled stays so."""
        with self._lock:
            self._ahead.clear()
            self._bytes = 0

    def add(self, blocks: Range, *, urgent: bool) -> None:
        """One more range."""
        with self._lock:
            (self._ahead.appendleft if urgent else self._ahead.append)(blocks)
            self._bytes += self._length(blocks)
        self._news = True  # it may be settled already
        self._pacer.wake()

    def settle(self, units: Iterable[int]) -> None:
        """What is still absent of these is to be fetched."""
        for unit in units:
            self._settled.set(unit, unit + 1)
        if not self.has_room:  # the copier may have no turn for long: forget what it need not see
            with self._lock:
                self._ahead = deque(one for one in self._ahead if not self._present.all(*one))
                self._bytes = sum(map(self._length, self._ahead))
        self._news = True
        self._pacer.wake()

    def end(self) -> None:
        """No more comes."""
        with self._lock:
            self.ended = True
        self._pacer.wake()
