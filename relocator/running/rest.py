"""The rest: what was written last at the source, sent with the answer to the seal.

A copy that has kept in step lacks little at the switch. To ask for it after the seal would cost a
round trip in which the guest runs on an incomplete disk. So the destination says how much it would
take, and the source adds the dirty blocks, the hottest first, to the answer in which it names them.

They are read from the image when they are asked for, behind the answer's maps: nobody waits for
them to learn that the disk is sealed.

A connection that was idle sends some 14 KB in its first round trip, whatever the link bears. So the
rest can be had in *parts*, each over a connection of its own: `TOKEN/BYTES/PART/OF`. The first part
comes with the maps, of the whole. Every part says which rest it is of.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cached_property

from relocator.copying.heat import Heat
from relocator.store import runs
from relocator.store.store import Runs, Store

#: what an answer brings at most, in bytes
MOST_REST_BYTES = 64 << 20


def most_of(argument: str) -> int:
    """How much may come with a seal that is asked for by `TOKEN/BYTES...`, in bytes."""
    most = argument.split("/")[1:2]
    return min(int(most[0]), MOST_REST_BYTES) if most else 0


def part_of(argument: str) -> tuple[int, int]:
    """The part that is asked for by `TOKEN/BYTES/PART/OF`, and of how many; the whole is 0 of 1."""
    part = argument.split("/")[2:]
    return (int(part[0]), int(part[1])) if part else (0, 1)


def part_bytes(size_bytes: int, parts: int, block_bytes: int) -> int:
    """What each part of a rest has, but perhaps the last ones: whole blocks."""
    return max(1, -(-size_bytes // (parts * block_bytes))) * block_bytes


class Rest:
    """The content of the blocks `chosen` (ascending runs) of `store`, one after the other."""

    def __init__(self, store: Store, chosen: Runs) -> None:
        self._store = store
        self._chosen = chosen
        self._places: list[int] = []  # where each run begins
        self.size_bytes = 0
        for first, end in chosen:
            self._places.append(self.size_bytes)
            self.size_bytes += store.geometry.extent(first, end).length

    def part(self, number: int, parts: int) -> "Part":
        """One of so many parts."""
        most = part_bytes(self.size_bytes, parts, self._store.geometry.block_bytes)
        at = min(number * most, self.size_bytes)
        return Part(self, at, min(most, self.size_bytes - at))

    @cached_property
    def name(self) -> str:
        """What tells it from another selection of blocks."""
        return hashlib.sha256(self.packed).hexdigest()[:32]

    @cached_property
    def packed(self) -> bytes:
        """Which blocks they are, as in store/runs.py."""
        return runs.pack_runs(self._chosen, self._store.geometry.total_blocks)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the content at `offset`, which must be within it."""
        at = bisect_right(self._places, offset) - 1
        while len(buffer):
            extent = self._store.geometry.extent(*self._chosen[at])
            within = offset - self._places[at]
            piece = buffer[: extent.length - within]
            self._store.image.read_into(piece, extent.offset + within)
            buffer, offset, at = buffer[len(piece) :], offset + len(piece), at + 1


class Part:
    """The bytes of `rest` from `at` on, `size_bytes` of them."""

    def __init__(self, rest: Rest, at: int, size_bytes: int) -> None:
        self._rest = rest
        self._at = at
        self.size_bytes = size_bytes

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the content at `offset`, which must be within it."""
        self._rest.read_into(buffer, self._at + offset)


def _dirty_groups(store: Store, step: int) -> Iterator[int]:
    """The first block of each group of `step` blocks in which one is dirty."""
    at, total = 0, store.dirty.bits
    while (at := store.dirty.next_set(at, total)) < total:
        yield at // step * step
        at = (at // step + 1) * step


def select(store: Store, heat: Heat, holds: Callable[[int, int], bool], most_bytes: int) -> Rest:
    """Dirty blocks of `store`, hottest groups first, `most_bytes` of them at most.

    `holds` says whether blocks `(first, end)` are in the image.
    """
    block, total = store.geometry.block_bytes, store.geometry.total_blocks
    step = max(1, heat.group_bytes // block)
    left = most_bytes // block
    chosen: Runs = []
    for group in sorted(_dirty_groups(store, step), key=lambda at: -heat.compared(at * block)):
        for first, end in store.dirty.set_runs(group, min(group + step, total)):
            stop = min(end, first + left)
            if first < stop and holds(first, stop):
                chosen.append((first, stop))
                left -= stop - first
        if left == 0:
            break
    return Rest(store, sorted(chosen))
