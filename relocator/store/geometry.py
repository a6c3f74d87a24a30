"""How bytes map to blocks: the one place where a request is split.

A disk of `size_bytes` is an array of blocks of `block_bytes` (a power of two); the last one may be
short. A byte extent touches a range of blocks; of these at most two, its edges, are covered only
in part. A range of blocks is always a pair `first, end` with `end` excluded.
"""

from dataclasses import dataclass
from typing import NamedTuple

MIN_BLOCK_BYTES = 512
MAX_BLOCK_BYTES = 1 << 20
USUAL_BLOCK_BYTES = 4096
#: Nine bits a block (three planes, live and twice durable) make 600 MiB of this many.
MOST_BLOCKS = 1 << 29
#: more can't be mapped: 512 TiB
MOST_BYTES = MOST_BLOCKS * MAX_BLOCK_BYTES


class Extent(NamedTuple):
    """A byte offset and a length in bytes."""

    offset: int
    length: int


class Split(NamedTuple):
    """A request in blocks: `edges` are covered in part, `first..end` wholly (empty if equal)."""

    edges: tuple[int, ...]
    first: int
    end: int


def suited_block_bytes(size_bytes: int) -> int:
    """The finest block whose maps stay small: 4 KiB up to 2 TiB, then doubled with the size."""
    block_bytes = USUAL_BLOCK_BYTES
    while block_bytes < MAX_BLOCK_BYTES and size_bytes > block_bytes * MOST_BLOCKS:
        block_bytes *= 2
    return block_bytes


@dataclass(frozen=True)
class Geometry:
    """Size of the disk and of its blocks, in bytes."""

    size_bytes: int
    block_bytes: int = USUAL_BLOCK_BYTES

    def __post_init__(self) -> None:
        block = self.block_bytes
        if block & (block - 1) or not MIN_BLOCK_BYTES <= block <= MAX_BLOCK_BYTES:
            raise ValueError(
                f"block_bytes={block}: must be a power of two "
                f"from {MIN_BLOCK_BYTES} to {MAX_BLOCK_BYTES}"
            )
        if self.size_bytes < 0:
            raise ValueError(f"size_bytes={self.size_bytes}: must not be negative")

    @property
    def total_blocks(self) -> int:
        """Blocks of the disk, a short last one included."""
        return -(-self.size_bytes // self.block_bytes)

    def touched(self, offset: int, length: int) -> tuple[int, int]:
        """The range of blocks that the bytes `offset..offset+length` touch."""
        block = self.block_bytes
        if length == 0:
            return offset // block, offset // block
        return offset // block, (offset + length - 1) // block + 1

    def split(self, offset: int, length: int) -> Split:
        """Part the touched blocks into those covered in part and those covered wholly.

        The short last block of a disk counts as whole when the request reaches the disk's end.
        """
        first, end = self.touched(offset, length)
        if first == end:
            return Split((), first, first)
        last = end - 1
        starts_inside = offset % self.block_bytes != 0
        ends_inside = (offset + length) % self.block_bytes != 0 and (
            offset + length != self.size_bytes
        )
        if first == last:
            return (
                Split((first,), end, end) if starts_inside or ends_inside else Split((), first, end)
            )
        edges = ((first,) if starts_inside else ()) + ((last,) if ends_inside else ())
        return Split(edges, first + starts_inside, end - ends_inside)

    def extent(self, first: int, end: int) -> Extent:
        """The bytes of the blocks `first..end`, cut at the disk's end."""
        offset = first * self.block_bytes
        return Extent(offset, min(end * self.block_bytes, self.size_bytes) - offset)
