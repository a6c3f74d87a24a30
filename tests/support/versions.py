"""What a disk may hold after a crash: every sector carries the number of the write that made it.

The *trace* is what the clients saw, in order. Numbers are given when a write is sent; each sector
belongs to one client, which has one request under way, so its numbers rise and are acknowledged in
order. From the trace follow, for any moment, the two bounds of what a sector may hold: at least the
*floor* (the newest write that a completed flush or FUA covers), at most what was sent by then.

What was written at the source is in no store before it was copied. But a block that *is* in a store
must hold at least what was acknowledged before the epoch that the store says its copy is of.
"""

import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.stamps import (
    REPEATS,
    SOURCE,
    STAMP,
    WRITTEN,
    ZEROS,
    source_sector,
)


@dataclass
class Sent:
    """A write: `zero` if it made its sectors zero."""

    first: int
    count: int
    zero: bool


class History:
    """What is known at a moment; moved on by `promise`, never back."""

    def __init__(self, sectors: int, events: Iterable[list[Any]]) -> None:
        self.floor = array("Q", bytes(8 * sectors))
        self.most = 0  # what was sent by now; the caller moves it on
        self.bounds: dict[str, int] = {}
        self._sent: dict[int, Sent] = {}
        self._zeros: dict[int, list[int]] = {}
        self._flushes: dict[str, int] = {}
        self._acknowledged: list[list[int]] = [[]]  # in front of each flush
        self._promised = 0
        self._away: list[int] = []
        self._asked = 0
        #: epoch (None: the seal) -> the least that a present block of a copy of it may hold
        self._taken: dict[int | None, array[int]] = {}
        self.least = self.floor  # of present blocks, beside the floor; see `copy_of`
        for kind, *rest in events:
            if kind == "send":
                self._send(*rest)
            elif kind == "ack":
                self._acknowledged[-1].append(rest[0])
            elif kind == "flush":
                self._flushes[rest[0]] = len(self._acknowledged)
                self._acknowledged.append([])
            elif kind == "away":
                self._away.append(rest[0])
            elif kind == "asked":
                self._asked = len(self._away)
            elif kind == "took":
                self._taken[rest[0]] = self._written_away()
            elif kind == "bound":
                self.bounds[rest[0]] = rest[1]

    def _send(self, number: int, first: int, count: int, zero: bool) -> None:
        self._sent[number] = Sent(first, count, zero)
        if zero:
            for sector in range(first, first + count):
                self._zeros.setdefault(sector, []).append(number)

    def _written_away(self) -> "array[int]":
        found = array("Q", bytes(8 * len(self.floor)))
        for number in self._away[: self._asked]:
            write = self._sent[number]
            for sector in range(write.first, write.first + write.count):
                found[sector] = max(found[sector], number)
        return found

    def copy_of(self, epoch: int | None) -> None:
        """The store is a copy of that epoch of the source, or of what was sealed (None)."""
        known = [one for one in self._taken if one is not None and epoch is not None]
        if epoch is not None:
            epoch = max((one for one in known if one <= epoch), default=0)
        self.least = self._taken.get(epoch, self.floor)

    def promise(self, mark: str) -> None:
        """The flush or FUA write with this mark has completed: `flush-7`, `fua-123`."""
        kind, _, number = mark.partition("-")
        if kind == "fua":
            self._raise(int(number))
        elif kind == "flush":  # covers all that was acknowledged when it was sent
            upto = self._flushes[mark]
            for numbers in self._acknowledged[self._promised : upto]:
                for acknowledged in numbers:
                    self._raise(acknowledged)
            self._promised = max(self._promised, upto)

    def _raise(self, number: int) -> None:
        write = self._sent[number]
        for sector in range(write.first, write.first + write.count):
            self.floor[sector] = max(self.floor[sector], number)

    def may_hold(self, sector: int, data: bytes) -> str | None:
        """None if the sector may hold `data`, else what is wrong with that."""
        floor = max(self.floor[sector], self.least[sector])
        if data == ZEROS:
            if any(floor <= number <= self.most for number in self._zeros.get(sector, ())):
                return None
            if floor == 0 and source_sector(sector) == ZEROS:
                return None
            return f"sector {sector} is zero, which it was not at or after write {floor}"
        who, number, at = STAMP.unpack_from(data)
        if data != STAMP.pack(who, number, at) * REPEATS or at != sector:
            return f"sector {sector} holds what nobody wrote there"
        if who == SOURCE:
            if floor == 0:
                return None
            return f"sector {sector} holds the source's data, write {floor} was flushed"
        write = self._sent.get(number)
        if who != WRITTEN or write is None or write.zero:
            return f"sector {sector} holds what nobody wrote there"
        if number < floor:
            return f"sector {sector} holds write {number}, write {floor} was flushed"
        return None


class Trace:
    """The trace as it is recorded; the caller serialises."""

    def __init__(self) -> None:
        self.events: list[list[Any]] = []

    def note(self, *event: Any) -> None:
        """Add an event.

        send number first count zero | ack number | flush name | bound name number;
        at the source: away number (acknowledged) | asked | took epoch
        """
        self.events.append(list(event))

    def save(self, path: Path) -> None:
        """Write it as JSON lines."""
        path.write_text("".join(json.dumps(event) + "\n" for event in self.events))


def load(path: Path, sectors: int) -> History:
    """The history that a recorded trace tells."""
    with path.open() as lines:
        return History(sectors, [json.loads(line) for line in lines])
