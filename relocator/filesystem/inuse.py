"""Which blocks of a disk hold data, by the file systems' own bitmaps; pure, in rounds of reads.

In use is whatever is not provably free: the free blocks of ext2, ext3 and ext4 file systems that
pass all checks (extfs.py), on the whole disk or in partitions (partitions.py). Tables, gaps and
volumes of any other kind are in use.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from relocator.filesystem import extfs, partitions
from relocator.filesystem.rounds import Rounds
from relocator.store.bitmap import Bitmap
from relocator.store.geometry import Extent, Geometry

T = TypeVar("T")


@dataclass(frozen=True)
class InUse:
    """The blocks in use (None: all of them), and what an operator should know of the verdict.

    `caveats` says why free blocks must not be skipped, if so; `mounted`, that the guest's newest
    allocations may exist only in its memory.
    """

    blocks: Bitmap | None
    notes: tuple[str, ...]
    caveats: tuple[str, ...]
    mounted: bool

    @property
    def free_blocks(self) -> int:
        """How many blocks are free."""
        return 0 if self.blocks is None else self.blocks.bits - self.blocks.count()


def survey(geometry: Geometry, *, journal: bool = True) -> Rounds[InUse]:
    """Find out: yields lists of extents to read, is sent their bytes, returns the verdict.

    Without the journals it costs little and may be minutes old: good enough for an order.
    """
    disk = yield from partitions.survey(geometry.size_bytes)
    blocks = None
    notes, caveats, mounted = list(disk.notes), [], False
    for volume in disk.volumes:
        if volume.kind != "ext":
            notes.append(f"{volume.name or 'whole disk'}: {volume.kind}, all of it is in use")
            continue
        found = yield from _shifted(extfs.survey(volume.length, journal=journal), volume.offset)
        if isinstance(found, str):
            notes.append(f"{volume.name or 'whole disk'}: ext, not believed: {found}")
            continue
        notes.append(found.summary())
        if found.caveat:
            caveats.append(found.caveat)
        mounted = mounted or found.mounted
        if blocks is None:
            blocks = Bitmap(geometry.total_blocks)
            blocks.set(0, blocks.bits)
        _, first, end = geometry.split(volume.offset, volume.length)
        blocks.clear(first, end)
        found.in_use_into(blocks, geometry.block_bytes, volume.offset)
    return InUse(blocks, tuple(notes), tuple(caveats), mounted)


def _shifted(
    rounds: Generator[list[Extent], list[bytes], T], offset: int
) -> Generator[list[Extent], list[bytes], T]:
    """The rounds of a volume, asked of the disk it lies on."""
    try:
        wanted = next(rounds)
        while True:
            answers = yield [Extent(extent.offset + offset, extent.length) for extent in wanted]
            wanted = rounds.send(answers)
    except StopIteration as over:
        result: T = over.value
        return result
