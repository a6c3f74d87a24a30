"""Absent blocks with an owner; what owning means is told in hydration.py. No I/O.

Every small write to an absent block makes a claim, so making one and letting it go is kept cheap.
"""

import threading
from collections.abc import Iterator

from relocator.errors import RelocatorError
from relocator.store.bitmap import Bitmap

Range = tuple[int, int]


class Claim:
    """Absent blocks `first..end` with an owner, until it calls `release`.

    `of_source`: what is to become present is the source's. `storing`: it is being written. `lost`:
    what others have taken of it; `given`: of that, what a guest's own fetch has. `again`: the
    source has failed to read it before; `out`: it leaves it unanswered.
    """

    __slots__ = (
        "_owner",
        "again",
        "background",
        "end",
        "error",
        "first",
        "given",
        "lost",
        "of_source",
        "out",
        "storing",
    )

    def __init__(
        self,
        first: int,
        end: int,
        *,
        of_source: bool = False,
        storing: bool = False,
        background: bool = False,
    ) -> None:
        self.first = first
        self.end = end
        self.of_source = of_source
        self.background = background
        self.storing = storing
        self.lost: list[Range] = []
        self.given: list[Range] = []
        self.again = self.out = False
        self.error: RelocatorError | None = None
        self._owner = threading.Lock()  # an Event takes longer than all else that a claim costs
        self._owner.acquire()

    def release(self) -> None:
        """Wake who waits."""
        self._owner.release()

    def wait(self, timeout_s: float = -1) -> bool:
        """Wait until it is released; whether it was within `timeout_s` (-1: no limit)."""
        released = self._owner.acquire(timeout=timeout_s)
        if released:
            self._owner.release()
        return released

    def kept(self) -> list[Range]:
        """What is left of it but for what was given to another."""
        return subtract([(self.first, self.end)], self.given)

    def owned(self) -> list[Range]:
        """What is left of it after others have taken their part."""
        return subtract([(self.first, self.end)], self.lost)


class Claims:
    """Who has which absent blocks of `present`. Called under the lock that guards that, too."""

    def __init__(self, present: Bitmap) -> None:
        self._present = present
        self._whole: dict[Claim, None] = {}  # in the order in which they were made
        self._parted: dict[Claim, None] = {}  # those of which a part was given to others

    def __iter__(self) -> Iterator[Claim]:
        yield from self._whole
        yield from self._parted

    def add(self, claims: list[Claim]) -> None:
        """These are made, of blocks that nobody has, or whose owners have lost them."""
        for claim in claims:  # one, as a rule
            self._whole[claim] = None

    def remove(self, claims: list[Claim]) -> None:
        """These are over."""
        for claim in claims:
            del (self._parted if claim.given else self._whole)[claim]

    def give(self, claim: Claim, first: int, end: int) -> bool:
        """Give what a claim has of `first..end` to another; False if it is over by now."""
        if claim not in self._whole and claim not in self._parted:
            return False
        part = max(first, claim.first), min(end, claim.end)
        claim.given.append(part)
        claim.lost.append(part)
        self._whole.pop(claim, None)
        self._parted[claim] = None
        return True

    def owners(self, first: int, end: int) -> list[Claim]:
        """The claims that have a block of `first..end`."""
        found = [claim for claim in self._whole if claim.first < end and first < claim.end]
        for claim in self._parted:
            if any(at < end and first < stop for at, stop in claim.kept()):
                found.append(claim)
        return found

    def unowned(self, first: int, end: int) -> Iterator[Range]:
        """Absent blocks of `first..end` that nobody has claimed.

        Found one after the other: who wants only the first doesn't pay for a fragmented map.
        """
        claimed = [
            (claim.first, claim.end)
            for claim in self._whole
            if claim.first < end and first < claim.end
        ]
        for claim in self._parted:
            claimed += claim.kept()
        for run in self._present.clear_runs(first, end):
            yield from subtract([run], claimed)


def subtract(ranges: list[Range], holes: list[Range]) -> list[Range]:
    """The parts of `ranges` outside all `holes`, in order."""
    for gap_first, gap_end in holes:
        rest: list[Range] = []
        for first, end in ranges:
            if gap_end <= first or end <= gap_first:
                rest.append((first, end))
                continue
            if first < gap_first:
                rest.append((first, gap_first))
            if gap_end < end:
                rest.append((gap_end, end))
        ranges = rest
    return ranges
