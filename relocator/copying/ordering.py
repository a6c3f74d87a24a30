"""In which order the background copy visits the disk: iterators over ranges of blocks.

First comes what is known by name: the blocks of a trace, and the places that were read of late
(recent.py). For the rest the disk is parted into *units* of at most a heat group. Each unit is one
or two items: its blocks in use and its free ones, if the file system's bitmaps are known and
`in-use` is among the keys. Items are sorted once, by the keys, of which the first weighs most; they
are yielded as ranges `(first, end)` that together cover the disk once. What is present is not known
here: the copier skips that.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from relocator.copying import recent
from relocator.errors import ConfigError
from relocator.store.bitmap import Bitmap
from relocator.store.geometry import Extent

Range = tuple[int, int]
_RANDOM_SEED = 1


@dataclass(frozen=True)
class Knowledge:
    """What an order may rest on. `heat[i]` is that of the bytes `i << heat_shift` onwards.

    `written` is that of writes alone: as long as only it is known, the hottest come last.
    """

    total_blocks: int
    block_bytes: int
    heat: Sequence[float] = ()
    written: Sequence[float] = ()
    heat_shift: int = 20
    in_use: Bitmap | None = None
    trace: Sequence[int] = ()
    recent: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """Blocks of `first..end` that are in use (True), free (False), or all of them (None)."""

    first: int
    end: int
    in_use: bool | None

    def ranges(self, knowledge: Knowledge) -> Iterator[Range]:
        """The item's blocks."""
        if self.in_use is None or knowledge.in_use is None:
            yield self.first, self.end
        elif self.in_use:
            yield from knowledge.in_use.set_runs(self.first, self.end)
        else:
            yield from knowledge.in_use.clear_runs(self.first, self.end)


def build(keys: Sequence[str], knowledge: Knowledge) -> Iterator[Range]:
    """The order by `in-use`, `hot`, `sequential` and `random`; other keys don't count."""
    rank = [_rank(key, knowledge) for key in keys]
    items = list(_items(knowledge, parted=knowledge.in_use is not None and "in-use" in keys))
    items.sort(key=lambda item: (*(value(item) for value in rank), item.first))
    for item in items:
        yield from item.ranges(knowledge)


def unit_blocks(knowledge: Knowledge) -> int:
    """Blocks of a unit."""
    return max(1, (1 << knowledge.heat_shift) // knowledge.block_bytes)


def _items(knowledge: Knowledge, *, parted: bool) -> Iterator[Item]:
    step = unit_blocks(knowledge)
    for first in range(0, knowledge.total_blocks, step):
        end = min(first + step, knowledge.total_blocks)
        if not parted or knowledge.in_use is None:
            yield Item(first, end, None)
            continue
        if knowledge.in_use.any(first, end):
            yield Item(first, end, True)
        if not knowledge.in_use.all(first, end):
            yield Item(first, end, False)


def _rank(key: str, knowledge: Knowledge) -> Callable[[Item], float]:
    """What `key` sorts by; smaller comes first."""
    if key == "in-use":
        return lambda item: 1.0 if item.in_use is False else 0.0
    if key == "hot":
        return _coldness(knowledge)
    if key == "random":
        shuffle = random.Random(_RANDOM_SEED)
        places: dict[int, float] = {}
        return lambda item: places.setdefault(item.first, shuffle.random())
    if key == "sequential":
        return lambda item: float(item.first)
    return lambda _item: 0.0  # its blocks come before all else


def _coldness(knowledge: Knowledge) -> Callable[[Item], float]:
    """An item is as hot as the hottest group in it; if only writes are known, as often written."""
    groups, sign = (knowledge.heat, -1) if knowledge.heat else (knowledge.written, 1)

    def coldness(item: Item) -> float:
        start, end = item.first * knowledge.block_bytes, item.end * knowledge.block_bytes
        last = (end - 1) >> knowledge.heat_shift
        return sign * max(groups[start >> knowledge.heat_shift : last + 1], default=0.0)

    return coldness


def named(keys: Sequence[str], knowledge: Knowledge) -> Iterator[Range]:
    """What comes before `build`: by `trace:FILE` and `recent`, blocks one by one."""
    for key in keys:
        if key.startswith("trace:"):
            for block in knowledge.trace:
                if block < knowledge.total_blocks:
                    yield block, block + 1
        elif key == "recent":
            yield from recent.ranges(
                knowledge.recent, knowledge.block_bytes, knowledge.total_blocks
            )


def read_trace(text: str) -> list[Extent]:
    """What was accessed, from lines `OFFSET[,LENGTH]` in bytes.

    Raises:
        ValueError: a line is something else; names its number.
    """
    found: list[Extent] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split(",")
        try:
            access = Extent(int(parts[0]), int(parts[1]) if len(parts) > 1 else 1)
        except ValueError as error:
            raise ValueError(f"line {number}: '{line}' is not OFFSET[,LENGTH] in bytes") from error
        if min(access) < 0:
            raise ValueError(f"line {number}: '{line}' has a number below 0")
        found.append(access)
    return found


def accesses(order: Sequence[str]) -> list[Extent]:
    """What is in an order's `trace:FILE`; nothing if it has no trace.

    Raises:
        ConfigError: the file can't be read, or is no trace.
    """
    key = next((one for one in order if one.startswith("trace:")), None)
    if key is None:
        return []
    try:
        return read_trace(Path(key.removeprefix("trace:")).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"order={key}: {error}") from error


def blocks(trace: Iterable[Extent], block_bytes: int) -> list[int]:
    """The blocks of a trace, in order of first access."""
    seen: dict[int, None] = {}
    for offset, length in trace:
        for block in range(offset // block_bytes, -(-(offset + length) // block_bytes)):
            seen[block] = None
    return list(seen)


def load_trace(order: Sequence[str], block_bytes: int) -> list[int]:
    """The blocks of an order's `trace:FILE`, in order of first access; errors as of `accesses`."""
    return blocks(accesses(order), block_bytes)
