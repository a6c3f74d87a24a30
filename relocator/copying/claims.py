"""Claims: who is about to make which absent blocks present. The rules are in hydration.py."""

import threading

from relocator.errors import RelocatorError

Range = tuple[int, int]


class Claim:
    """Absent blocks `first..end` with an owner. `done` is set once they are released.

    `of_source`: what is to become present is the source's. `storing`: it is being written.
    """

    __slots__ = ("background", "done", "end", "error", "first", "lost", "of_source", "storing")

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
        self.error: RelocatorError | None = None
        self.done = threading.Event()

    def overlaps(self, first: int, end: int) -> bool:
        """Whether the claim has a block in `first..end`."""
        return self.first < end and first < self.end

    def owned(self) -> list[Range]:
        """What is left of it after writes have taken their part."""
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
