"""Which blocks of a disk hold data, by the file systems' own bitmaps; pure, in rounds of reads.

In use is whatever is not provably free: the free blocks of ext2, ext3 and ext4 file systems that
pass all checks (extfs.py), on the whole disk or in partitions (partitions.py). Tables, gaps and
volumes of any other kind are in use.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

from relocator.filesystem import extfs, partitions
from relocator.filesystem.rounds import Rounds
from relocator.store.bitmap import Bitmap
from relocator.store.geometry import Extent, Geometry

T = TypeVar("T")


@dataclass(frozen=True)
class Mounted:
    """A file system that was mounted; its newest allocations may exist in a guest's memory only.

    `volume` is where it lies on the disk, `settled` where its journal lies up to the last commit
    but one.
    """

    name: str
    volume: Extent
    settled: tuple[Extent, ...]

    def covered(self, written: Bitmap, geometry: Geometry) -> bool:
        """Whether the blocks `written` of the disk hold all that its bitmaps don't tell yet.

        So it is if the record of them began before the last two commits, as a block of the disk
        shows that holds a part of the journal before them, and nothing else. `geometry` is that of
        the record: parts of one of its blocks were not written each, but one of them.
        """
        for extent in self.settled:
            _, first, end = geometry.split(*extent)
            if first < end and written.any(first, end):
                return True
        return False


@dataclass(frozen=True)
class InUse:
    """The blocks in use (None: all of them), and what an operator should know of the verdict.

    `caveats` says why free blocks must not be skipped, if so; `mounted` are the file systems of
    which that takes a record of what was written, too.
    """

    blocks: Bitmap | None
    notes: tuple[str, ...]
    caveats: tuple[str, ...]
    mounted: tuple[Mounted, ...]

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
    notes, caveats, mounted = list(disk.notes), [], list[Mounted]()
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
        if found.mounted:
            settled = tuple(_moved(found.settled, volume.offset))
            place = Extent(volume.offset, volume.length)
            mounted.append(Mounted(volume.name or "whole disk", place, settled))
        if blocks is None:
            blocks = Bitmap(geometry.total_blocks)
            blocks.set(0, blocks.bits)
        _, first, end = geometry.split(volume.offset, volume.length)
        blocks.clear(first, end)
        found.in_use_into(blocks, geometry.block_bytes, volume.offset)
    return InUse(blocks, tuple(notes), tuple(caveats), tuple(mounted))


def _moved(extents: Iterable[Extent], offset: int) -> list[Extent]:
    """Extents of a volume as those of the disk."""
    return [Extent(extent.offset + offset, extent.length) for extent in extents]


def _shifted(
    rounds: Generator[list[Extent], list[bytes], T], offset: int
) -> Generator[list[Extent], list[bytes], T]:
    """The rounds of a volume, asked of the disk it lies on."""
    try:
        wanted = next(rounds)
        while True:
            answers = yield _moved(wanted, offset)
            wanted = rounds.send(answers)
    except StopIteration as over:
        result: T = over.value
        return result
