"""The ledger: what clients were promised, and so what each sector of the disk may hold.

Writes have numbers that rise; each sector belongs to one client, which has at most one write of it
under way. What a sector may hold is its last acknowledged write, or one whose fate is unknown: not
answered yet, failed, or *orphaned* by a connection that was lost. An orphan may still be carried
out as long as its server lives, so it is not outdone by what is acknowledged after it.

    a process dies      what was acknowledged stays
    power fails         what was acknowledged at that site and not flushed may be lost
    the disk has moved  what was acknowledged at the old site is as good as flushed by the seal

Number 0 is what the source held at first.
"""

from array import array
from collections import deque
from dataclasses import dataclass
from typing import Any

from tests.support.stamps import (
    REPEATS,
    SECTOR_BYTES,
    SOURCE,
    STAMP,
    WRITTEN,
    ZEROS,
    source_sector,
)


def first_number(client: int, life: int) -> int:
    """The least number of a client's requests in its so-manieth life; they rise with both."""
    return client << 56 | life << 32


def client_of(number: int) -> int:
    """Whose request that is."""
    return number >> 56


@dataclass(frozen=True, slots=True)
class Sent:
    """A write as it was sent; `zero` if it makes its sectors zero."""

    number: int
    first: int
    count: int
    zero: int
    site: str
    at_s: float

    @property
    def sectors(self) -> range:
        return range(self.first, self.first + self.count)


class Ledger:
    """What is known of every sector. `note` takes the events, in order."""

    def __init__(self, sectors: int) -> None:
        self.sectors = sectors
        self._acknowledged = array("Q", bytes(8 * sectors))
        self._durable = array("Q", bytes(8 * sectors))
        self._maybe: dict[int, set[int]] = {}
        self.sent: dict[int, Sent] = {}
        self._flying: set[int] = set()  # sent, and not answered
        self._orphans: set[int] = set()  # may still be carried out by their servers
        self._dead: set[int] = set()  # in flight when their server died
        self._unflushed: deque[tuple[int, str]] = deque()  # number, site: in order of their replies
        self._flushes: dict[int, set[int]] = {}

    def note(self, at_s: float, kind: str, *rest: Any) -> None:
        """An event of a client, or of a site.

        send number first count zero site | ack number fua | fail number | orphan number |
        flush name site | flushed name
        """
        getattr(self, f"_{kind}")(at_s, *rest)

    def _send(self, at_s: float, *fields: Any) -> None:
        number, first, count, zero, site = fields
        sent = Sent(number, first, count, zero, site, at_s)
        self.sent[number] = sent
        self._flying.add(number)
        for sector in sent.sectors:
            self._maybe.setdefault(sector, set()).add(number)

    def _ack(self, _at_s: float, number: int, fua: int) -> None:
        sent = self.sent[number]
        self._flying.discard(number)
        self._unflushed.append((number, sent.site))
        for sector in sent.sectors:
            self._acknowledged[sector] = number
            self._outdo(sector)
        if fua:
            self._settle({number})

    def _outdo(self, sector: int) -> None:
        """Forget of a sector what can't be there any more."""
        last = self._acknowledged[sector]
        maybe = self._maybe.get(sector, set())
        if kept := {one for one in maybe if one > last or one in self._orphans}:
            self._maybe[sector] = kept
        else:
            self._maybe.pop(sector, None)

    def _fail(self, _at_s: float, number: int) -> None:
        self._flying.discard(number)

    def _orphan(self, _at_s: float, number: int) -> None:
        self._flying.discard(number)
        if number not in self._dead:
            self._orphans.add(number)

    def orphan_all(self, client: int) -> None:
        """A client has ended: nobody knows what becomes of what it had under way."""
        for number in [one for one in self._flying if client_of(one) == client]:
            self._orphan(0.0, number)

    def _flush(self, _at_s: float, name: int, site: str) -> None:
        self._flushes[name] = {
            number
            for number, where in self._unflushed
            if where == site and client_of(number) == client_of(name) and number < name
        }

    def _flushed(self, _at_s: float, name: int) -> None:
        self._settle(self._flushes.pop(name))

    def _settle(self, numbers: set[int]) -> None:
        """Writes that no power failure may take back."""
        self._unflushed = deque(one for one in self._unflushed if one[0] not in numbers)
        for number in numbers:
            for sector in self.sent[number].sectors:
                self._durable[sector] = max(self._durable[sector], number)

    def died(self, site: str) -> None:
        """The server of a site has ended: none of its orphans is carried out any more.

        One may have been by then, also after what was acknowledged last: so the next write to be
        acknowledged outdoes it, and nothing before.
        """
        gone = {one for one in self._flying | self._orphans if self.sent[one].site == site}
        self._dead |= gone
        self._orphans -= gone

    def moved(self, site: str) -> None:
        """Another site has taken over from this one, whose seal made all durable."""
        self._settle({number for number, where in self._unflushed if where == site})

    def power_failed(self, site: str) -> None:
        """What was acknowledged at this site and not flushed may be lost."""
        lost = [number for number, where in self._unflushed if where == site]
        for number in lost:
            for sector in self.sent[number].sectors:
                self._maybe.setdefault(sector, set()).add(number)
                self._acknowledged[sector] = self._durable[sector]
        self._unflushed = deque(one for one in self._unflushed if one[1] != site)

    def wrong(self, first: int, data: bytes) -> str | None:
        """None if the sectors from `first` on may hold `data`, else what is wrong with that."""
        for at in range(len(data) // SECTOR_BYTES):
            found = data[at * SECTOR_BYTES : (at + 1) * SECTOR_BYTES]
            if not self._may_hold(first + at, found):
                return self._tell(first + at, found)
        return None

    def _may_hold(self, sector: int, data: bytes) -> bool:
        may = (self._acknowledged[sector], *self._maybe.get(sector, ()))
        if data == ZEROS:
            return any(
                self.sent[one].zero if one else source_sector(sector) == ZEROS for one in may
            )
        who, number, at = STAMP.unpack_from(data)
        if at != sector or data != STAMP.pack(who, number, at) * REPEATS:
            return False
        if who == SOURCE:
            return 0 in may
        return who == WRITTEN and number in may and not self.sent[number].zero

    def _tell(self, sector: int, data: bytes) -> str:
        who, number, at = STAMP.unpack_from(data)
        found = "zeros" if data == ZEROS else f"{who!r} {number:#x} of sector {at}"
        last, maybe = self._acknowledged[sector], sorted(self._maybe.get(sector, ()))
        return (
            f"sector {sector} reads as {found}; acknowledged there: {self._name(last)}, "
            f"flushed: {self._name(self._durable[sector])}"
            f", unknown: {', '.join(map(self._name, maybe)) or 'none'}"
        )

    def _name(self, number: int) -> str:
        if number == 0:
            return "the source's"
        sent = self.sent[number]
        return f"{number:#x}{' (zeros)' if sent.zero else ''} at {sent.site}, {sent.at_s:.3f} s"
