"""Absent blocks with an owner; what owning means is told in hydration.py. Pure but for the waiting.

Every small write to an absent block makes a claim, so making one and letting it go is kept cheap.
"""

import threading

from relocator.errors import RelocatorError

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
