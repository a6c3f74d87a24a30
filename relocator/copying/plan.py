"""What the background copy goes by: the order that was asked for, and what is known of the disk.

Guests' and operators' threads change it while the copier walks it. Each change counts up
`generation`, by which the copier sees that its walk is out of date.

`_lock` makes a change one step; it is never held across I/O.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from relocator.copying import ordering
from relocator.copying.ordering import Knowledge
from relocator.store.geometry import Geometry


class Plan:
    """The order `keys` (see ordering.py) over a disk. `trace` are the blocks of `trace:FILE`."""

    def __init__(
        self, geometry: Geometry, keys: tuple[str, ...], *, heat_shift: int, trace: Sequence[int]
    ) -> None:
        self.geometry = geometry
        self.keys = keys
        self.knowledge = Knowledge(
            geometry.total_blocks, geometry.block_bytes, heat_shift=heat_shift, trace=trace
        )
        #: what an operator should know of the verdict on the disk's file systems
        self.notes: tuple[str, ...] = ()
        self.generation = 0
        self._lock = threading.Lock()

    def add(self, **known: Any) -> None:
        """Something more is known: fields of `Knowledge`."""
        with self._lock:
            self.knowledge = replace(self.knowledge, **known)
            self.generation += 1

    def set_keys(self, keys: tuple[str, ...], trace: Sequence[int]) -> None:
        """Change the order."""
        with self._lock:
            self.keys = keys
            self.knowledge = replace(self.knowledge, trace=trace)
            self.generation += 1

    def named(self) -> Iterator[tuple[int, int]]:
        """Ranges of blocks `(first, end)` that come first: known one by one, not by groups."""
        return ordering.named(self.keys, self.knowledge)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Ranges of blocks `(first, end)` in the order of now; together all of the disk."""
        return ordering.build(self.keys, self.knowledge)

    def unit_around(self, block: int) -> tuple[int, int]:
        """The unit that a block belongs to, as a range of blocks."""
        unit = ordering.unit_blocks(self.knowledge)
        first = block // unit * unit
        return first, min(first + unit, self.geometry.total_blocks)

    @property
    def known(self) -> list[str]:
        """What the order can rest on by now: `recent`, `hot`, `in-use`."""
        found = {
            "recent": bool(self.knowledge.recent),
            "hot": bool(self.knowledge.heat),
            "in-use": self.knowledge.in_use is not None,
        }
        return [name for name, known in found.items() if known]
