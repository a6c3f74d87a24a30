"""Heat: how recently and how often each group of the disk was used, with exponential decay.

Reads make most of it: they are what a guest waits for while its disk is elsewhere. A write of whole
blocks never waits for the source, so it counts for little; it is not nothing, as what is written
will be read. Writes are also counted for themselves: what the guest keeps writing is copied ahead
last, and comes first with the seal.

A group here is a power-of-two stretch of bytes, the stand-in for an ext block group that needs no
knowledge of the file system; there are at most `MOST_GROUPS`. An access now weighs 1, one a half
life ago 1/2. Instead of letting every counter decay, new accesses weigh more and more (forward
decay: Cormode et al., 2009), so noting one is a single addition. Counters are scaled down long
before the weight overflows. Two threads may lose an addition to each other: this is a statistic.
"""

from array import array
from collections.abc import Callable
from math import isfinite

from relocator.errors import UpstreamError

MOST_GROUPS = 1 << 16
LEAST_GROUP_BYTES = 1 << 18
HALF_LIFE_S = 300.0
_REFRESH_S = 1.0
_WRITE_SHARE = 1 / 16
_LARGEST_WEIGHT = 2.0**60
_MOST_HALF_LIVES = 1000  # of a process that was stopped for days: all is forgotten, none too large


class Heat:
    """Heat of a disk of `size_bytes`; `now` gives seconds."""

    def __init__(self, size_bytes: int, now: Callable[[], float]) -> None:
        self.shift = LEAST_GROUP_BYTES.bit_length() - 1
        while size_bytes >> self.shift > MOST_GROUPS:
            self.shift += 1
        self.groups = max(1, -(-size_bytes // (1 << self.shift)))
        self._now = now
        self._origin_s = self._fresh_until_s = now()
        self._weight = 1.0
        self._heat = array("d", bytes(8 * self.groups))
        self._writes = array("d", bytes(8 * self.groups))

    @property
    def group_bytes(self) -> int:
        """Size of a group in bytes."""
        return 1 << self.shift

    def note_read(self, offset: int) -> None:
        """Note a read at byte `offset`."""
        self._heat[offset >> self.shift] += self._weight

    def note_write(self, offset: int) -> None:
        """Note a write at byte `offset`."""
        self._heat[offset >> self.shift] += self._weight * _WRITE_SHARE
        self._writes[offset >> self.shift] += self._weight

    def tick(self) -> None:
        """Let time pass: called now and then, not for every access."""
        now_s = self._now()
        if now_s < self._fresh_until_s:
            return
        self._fresh_until_s = now_s + _REFRESH_S
        half_lives = (now_s - self._origin_s) / HALF_LIFE_S
        self._weight = 2.0 ** min(half_lives, _MOST_HALF_LIVES)
        if self._weight > _LARGEST_WEIGHT:
            self._heat = array("d", (value / self._weight for value in self._heat))
            self._writes = array("d", (value / self._weight for value in self._writes))
            self._origin_s, self._weight = now_s, 1.0

    def compared(self, offset: int) -> float:
        """How hot the group at byte `offset` is, next to others at the same moment."""
        return self._heat[offset >> self.shift]

    def values(self, *, writes: bool = False) -> list[float]:
        """Heat of every group now: accesses, or `writes`, those of long ago counting for less."""
        self.tick()
        return [value / self._weight for value in (self._writes if writes else self._heat)]

    def pack(self, *, writes: bool = False) -> bytes:
        """The values as little-endian 32-bit floats."""
        return array("f", self.values(writes=writes)).tobytes()


#: what a packed heat takes at most, in bytes
MOST_PACKED_BYTES = 4 * (MOST_GROUPS + 1)


def unpack(packed: bytes) -> list[float]:
    """The values of a packed heat.

    Raises:
        UpstreamError: the data is damaged.
    """
    values = array("f")
    try:
        values.frombytes(packed)
    except ValueError as error:
        raise UpstreamError(f"the source's heat can't be read: {error}") from error
    return [value if isfinite(value) else 0.0 for value in values]


def shift_of(group_bytes: int, size_bytes: int) -> int:
    """The groups of a source whose disk is that large, as a power of two.

    Raises:
        UpstreamError: there would be too many of them to plan by, or that is no such power.
    """
    shift = group_bytes.bit_length() - 1
    if group_bytes < LEAST_GROUP_BYTES or size_bytes >> shift > MOST_GROUPS:
        raise UpstreamError(f"the source's answer has group_bytes={group_bytes}")
    return shift
