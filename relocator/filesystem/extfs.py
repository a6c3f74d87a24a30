"""Which bytes of an ext2, ext3 or ext4 file system hold data, read from its own bitmaps.

A wrong "free" loses data, so nothing is believed that can be checked and was not: the superblock
as a whole (`ext_layout`), then each group for itself (`ext_groups`). What is not believed is in
use, and so is what the file system does not speak of: the boot block, and the volume behind it.

**What "free" is worth on the disk of a running guest.** Three states of one bitmap exist: in its
place on the disk (minutes old), in the journal (up to the last commit), in the guest's memory
(now). The journal is walked (`ext_journal`) and its newer copies of descriptors and bitmaps are
used; groups whose bitmap is in a last, uncommitted transaction are not believed. If that can't be
done (no journal, external, too long, fast commits, damaged), `caveat` says so. What remains even
then is the running transaction, in guest memory only: blocks allocated since the last commit look
free although their data is on the disk already. Such data was *written at the source* since that
commit (5 s by default, `commit=` of the mount). So:

- for the order of a copy, "free" may always be used: a wrong one costs only time;
- to leave free blocks out, `caveat` must be empty, and if `mounted` is true every block that was
  written at the source must be counted as in use as well, by a record that began two commits ago
  (`settled`).

Reads for 1 TiB with default features: superblock,
descriptors, the journal's tail, then 32 MiB of bitmaps in 64 KiB pieces, 4 MiB a round.

Format: the kernel's Documentation/filesystems/ext4.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from relocator.filesystem import ext_inode, ext_journal
from relocator.filesystem.ext_groups import Groups, Verdict
from relocator.filesystem.ext_journal import Replay
from relocator.filesystem.ext_layout import (
    COMPAT_FAST_COMMIT,
    COMPAT_HAS_JOURNAL,
    INCOMPAT_64BIT,
    INCOMPAT_EXTENTS,
    INCOMPAT_FLEX_BG,
    INCOMPAT_RECOVER,
    STATE_ERROR,
    STATE_ORPHANS,
    STATE_VALID,
    SUPERBLOCK_BYTES,
    SUPERBLOCK_OFFSET,
    Layout,
    parse,
)
from relocator.filesystem.rounds import ROUND_BYTES, Doubt, Rounds, ask, ask_one
from relocator.store.bitmap import Bitmap
from relocator.store.geometry import Extent

#: The first read: the superblock and, at the usual block size, the descriptors of 120 GiB.
_HEAD_BYTES = 64 << 10
#: Neighbouring blocks are read in pieces of at most this, over gaps that cost less than a request.
_PIECE_BYTES = 1 << 20
_GAP_BYTES = 64 << 10

ByteRange = tuple[int, int]


@dataclass(frozen=True)
class ExtFilesystem:
    """What is known of a file system; ranges are bytes of the volume, `(first, end)`."""

    layout: Layout
    volume_bytes: int
    #: Written to by a guest when last seen: the newest allocations are in its memory only.
    mounted: bool
    #: Why the bitmaps may be older than the last commit; empty if they are not.
    caveat: str
    #: Where its journal lies up to the last commit but one.
    settled: tuple[Extent, ...]
    #: Groups that are wholly in use because they are not believed, each with the reason.
    doubts: dict[int, str] = field(repr=False)
    #: For each believed group its bitmap, a set bit an allocated cluster; compressed.
    bitmaps: dict[int, bytes] = field(repr=False)
    #: Bytes in use, the volume's tail and doubted groups included.
    in_use_bytes: int

    @property
    def kind(self) -> str:
        """ext2, ext3 or ext4, by the features."""
        layout = self.layout
        modern = layout.incompat & (INCOMPAT_EXTENTS | INCOMPAT_64BIT | INCOMPAT_FLEX_BG)
        if modern or layout.ro_compat & ~0x7:
            return "ext4"
        return "ext3" if layout.compat & COMPAT_HAS_JOURNAL else "ext2"

    @property
    def size_bytes(self) -> int:
        """Bytes of the file system; the volume may be longer."""
        return self.layout.blocks * self.layout.block_bytes

    def group_in_use(self, group: int) -> Iterator[ByteRange]:
        """The ranges of a group that are in use, ascending, not touching each other."""
        first, end = group_range(self.layout, group)
        packed = self.bitmaps.get(group)
        if packed is None:
            yield first, end
            return
        layout = self.layout
        base = layout.first_block(group) * layout.block_bytes
        cluster_bytes = layout.cluster_blocks * layout.block_bytes
        bits = Bitmap(layout.clusters_in(group), bytearray(zlib.decompress(packed)))
        ranges = (
            (base + low * cluster_bytes, min(base + high * cluster_bytes, end))
            for low, high in bits.set_runs(0, bits.bits)
        )
        boot = ((first, base),) if first < base else ()
        yield from _merged(chain(boot, ranges))

    def in_use(self) -> Iterator[ByteRange]:
        """The ranges of the volume that are in use, ascending, merged."""
        ranges = chain.from_iterable(map(self.group_in_use, range(self.layout.group_count)))
        tail = (
            ((self.size_bytes, self.volume_bytes),) if self.size_bytes < self.volume_bytes else ()
        )
        return _merged(chain(ranges, tail))

    def in_use_into(self, bitmap: Bitmap, block_bytes: int, volume_offset: int = 0) -> None:
        """Set the bit of every block of the disk that is in use in whole or part.

        `bitmap` is over the disk's blocks of `block_bytes`; the volume begins at the disk's byte
        `volume_offset`. Bits are only set, never cleared.
        """
        for first, end in self.in_use():
            low = (volume_offset + first) // block_bytes
            high = -(-(volume_offset + end) // block_bytes)
            bitmap.set(low, min(high, bitmap.bits))

    def summary(self) -> str:
        """One line for the status."""
        label = f" '{self.layout.label}'" if self.layout.label else ""
        text = (
            f"{self.kind}{label}, {self.layout.group_count} groups, "
            f"blocks of {self.layout.block_bytes} bytes: "
            f"{self.in_use_bytes / 2**20:.1f} of {self.volume_bytes / 2**20:.1f} MiB in use"
        )
        if self.doubts:
            group, reason = min(self.doubts.items())
            text += f"; {len(self.doubts)} groups not believed (group {group}: {reason})"
        return f"{text}; {self.caveat}" if self.caveat else text


def survey(volume_bytes: int, *, journal: bool = True) -> Rounds[ExtFilesystem | str]:
    """What is in use on a volume, in rounds of reads from its start; or why it is not believed.

    Without the journal, which may be larger than all the rest, the verdict has a caveat.
    """
    try:
        return (yield from _survey(volume_bytes, journal))
    except Doubt as doubt:
        return str(doubt)


def _survey(volume_bytes: int, journal: bool) -> Rounds[ExtFilesystem]:
    if volume_bytes < SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES:
        raise Doubt("too small for a file system")
    head = yield from ask_one(0, min(_HEAD_BYTES, volume_bytes), volume_bytes)
    layout = parse(head[SUPERBLOCK_OFFSET:][:SUPERBLOCK_BYTES], volume_bytes)
    if layout.state & STATE_ERROR:
        raise Doubt("the file system is marked as having errors: fsck it first")
    table = yield from _descriptor_blocks(layout, head, volume_bytes)
    replay, caveat = yield from _newest(layout, table, volume_bytes, journal)
    newest = [replay.newest(block, raw) for block, raw in table.items()]
    groups = Groups(layout, _descriptors(layout, newest), replay.unfinished)
    bitmaps, used_bytes = yield from _bitmaps(layout, groups, replay, volume_bytes)
    for group in groups.doubts:
        first, end = group_range(layout, group)
        used_bytes += end - first
    used_bytes += layout.first_data_block * layout.block_bytes * (0 not in groups.doubts)
    return ExtFilesystem(
        layout=layout,
        volume_bytes=volume_bytes,
        mounted=bool(layout.incompat & INCOMPAT_RECOVER) or not layout.state & STATE_VALID,
        caveat=caveat,
        settled=replay.settled,
        doubts=dict(sorted(groups.doubts.items())),
        bitmaps=bitmaps,
        in_use_bytes=used_bytes + volume_bytes - layout.blocks * layout.block_bytes,
    )


def group_range(layout: Layout, group: int) -> ByteRange:
    """The bytes of a group; the boot block counts to group 0."""
    first = layout.first_block(group) if group else 0
    end = min(layout.first_block(group + 1), layout.blocks)
    return first * layout.block_bytes, end * layout.block_bytes


def _descriptor_blocks(layout: Layout, head: bytes, volume_bytes: int) -> Rounds[dict[int, bytes]]:
    """The blocks of group descriptors, by block number, in the order of the groups."""
    blocks = [layout.descriptor_block(index) for index in range(layout.descriptor_blocks)]
    size = layout.block_bytes
    if (max(blocks) + 1) * size <= len(head):
        return {block: head[block * size : (block + 1) * size] for block in blocks}
    table: dict[int, bytes] = {}
    for pieces in _rounds_of(layout, blocks):
        table.update((yield from _read_blocks(layout, pieces, volume_bytes)))
    return {block: table[block] for block in blocks}


def _descriptors(layout: Layout, table: list[bytes]) -> list[bytes]:
    """The raw descriptors of all groups."""
    size = layout.descriptor_bytes
    found = [raw[at : at + size] for raw in table for at in range(0, len(raw) - size + 1, size)]
    return found[: layout.group_count]


def _newest(
    layout: Layout, table: dict[int, bytes], volume_bytes: int, journal: bool
) -> Rounds[tuple[Replay, str]]:
    """Newer copies from the journal, and why there are none although there may be."""
    if not layout.incompat & INCOMPAT_RECOVER:
        if layout.state & STATE_VALID and not layout.state & STATE_ORPHANS:
            return Replay(), ""
        return Replay(), "in use without a journal when last written: its bitmaps may be old"
    if not journal:
        return Replay(), "its journal was not read: its bitmaps may be old"
    try:
        replay = yield from _replay(layout, table, volume_bytes)
        return replay, ""
    except Doubt as doubt:
        return Replay(), f"its bitmaps may be old: {doubt}"


def _replay(layout: Layout, table: dict[int, bytes], volume_bytes: int) -> Rounds[Replay]:
    if not layout.journal_inode or not layout.compat & COMPAT_HAS_JOURNAL:
        raise Doubt("the journal is on another device")
    if layout.compat & COMPAT_FAST_COMMIT:
        raise Doubt("fast commits are not understood")
    raws = _descriptors(layout, list(table.values()))
    owner = (layout.journal_inode - 1) // layout.inodes_per_group
    if owner >= len(raws):
        raise Doubt(f"journal: inode {layout.journal_inode} does not exist")
    inode_table = layout.group(raws[owner]).inode_table
    runs = yield from ext_inode.runs(layout, layout.journal_inode, inode_table, volume_bytes)
    interest = set(table) | {layout.group(raw).block_bitmap for raw in raws}
    return (yield from ext_journal.replay(layout, runs, interest, volume_bytes))


def _bitmaps(
    layout: Layout, groups: Groups, replay: Replay, volume_bytes: int
) -> Rounds[tuple[dict[int, bytes], int]]:
    """The believed bitmaps by group, and how many bytes they call in use."""
    believed: dict[int, bytes] = {}
    used_bytes = 0

    def note(group: int, verdict: Verdict | None) -> None:
        nonlocal used_bytes
        if verdict is not None:
            believed[group] = verdict.bitmap
            used_bytes += verdict.used_bytes

    owner = {}
    for group, descriptor in enumerate(groups.groups):
        if groups.has_bitmap(group):
            owner[descriptor.block_bitmap] = group
        elif group not in groups.doubts:
            note(group, groups.judge_uninit(group))
    for pieces in _rounds_of(layout, sorted(owner)):
        found = yield from _read_blocks(layout, pieces, volume_bytes)
        newest = {block: replay.newest(block, raw) for block, raw in found.items()}
        groups.check_bitmaps([owner[block] for block in newest], list(newest.values()))
        for block, raw in newest.items():
            if owner[block] not in groups.doubts:
                note(owner[block], groups.judge(owner[block], raw))
    return believed, used_bytes


def _rounds_of(layout: Layout, blocks: list[int]) -> Iterator[list[list[int]]]:
    """Ascending blocks in pieces, each to be read as one extent, and the pieces of a round."""
    size = layout.block_bytes
    most, gap = max(1, _PIECE_BYTES // size), max(1, _GAP_BYTES // size)
    pieces: list[list[int]] = []
    spanned = 0
    for block in blocks:
        step = block - pieces[-1][-1] if pieces else 0
        if pieces and step <= gap and block - pieces[-1][0] < most:
            pieces[-1].append(block)
            spanned += step * size
            continue
        if spanned >= ROUND_BYTES - _PIECE_BYTES:
            yield pieces
            pieces, spanned = [], 0
        pieces.append([block])
        spanned += size
    if pieces:
        yield pieces


def _read_blocks(
    layout: Layout, pieces: list[list[int]], volume_bytes: int
) -> Rounds[dict[int, bytes]]:
    """Read the blocks of some pieces in one round; by block number, ascending."""
    size = layout.block_bytes
    wanted = [layout.extent(piece[0], piece[-1] + 1 - piece[0]) for piece in pieces]
    answers = yield from ask(wanted, volume_bytes)
    return {
        block: data[(block - piece[0]) * size :][:size]
        for piece, data in zip(pieces, answers, strict=True)
        for block in piece
    }


def _merged(ranges: Iterator[ByteRange]) -> Iterator[ByteRange]:
    """Ascending ranges with those that touch made one."""
    first = end = -1
    for low, high in ranges:
        if low == end:
            end = high
            continue
        if end > first:
            yield first, end
        first, end = low, high
    if end > first:
        yield first, end
