"""What the block groups of an ext file system say is in use, checked before it is believed.

A group is believed if its descriptor has a right checksum (where there are any), its bitmaps and
inode table lie inside the file system and overlap nothing else, its bitmap has a right checksum,
marks the metadata that lies in the group and the padding behind its end, and leaves as many
clusters free as the descriptor says. A group that fails is *wholly in use*, with the reason. A
group flagged BLOCK_UNINIT, under a right checksum, has no bitmap on the disk: its metadata, and
nothing else, is in use.

Bitmaps are handled as Python integers: masks, counts and comparisons of a whole group at once. A
checked one is kept compressed: those of real file systems shrink to a small part, those of wholly
used or free groups to some 30 bytes, so 1 TiB fits in a few MiB.
"""

import zlib
from dataclasses import dataclass

from relocator.filesystem.checksums import CRC32C
from relocator.filesystem.ext_layout import (
    BLOCK_UNINIT,
    INCOMPAT_FLEX_BG,
    RO_METADATA_CSUM,
    Group,
    Layout,
)

_Range = tuple[int, int]


@dataclass(frozen=True)
class Verdict:
    """A believed group: bytes of it in use, and its bitmap (a set bit: in use), compressed."""

    used_bytes: int
    bitmap: bytes


class Groups:
    """The descriptors of all groups and the doubts they raise; then `judge` their bitmaps."""

    def __init__(self, layout: Layout, raws: list[bytes], unfinished: set[int]) -> None:
        """`unfinished` are blocks whose newest state is not known, see `ext_journal`."""
        self._layout = layout
        self.groups = [layout.group(raw) for raw in raws]
        #: group -> why it is not believed
        self.doubts: dict[int, str] = {}
        for group, faulty in enumerate(layout.checksum_faults(raws)):
            if faulty:
                self.doubts[group] = "wrong descriptor checksum"
            elif problem := self._misplaced(group):
                self.doubts[group] = problem
            elif self.groups[group].block_bitmap in unfinished:
                self.doubts[group] = "its bitmap is in a transaction that was not committed"
        self._metadata = self._claims()

    def _misplaced(self, number: int) -> str:
        """What is wrong with where a descriptor says its metadata is; empty if nothing."""
        layout, group = self._layout, self.groups[number]
        low, high = layout.first_data_block, layout.blocks
        if not layout.incompat & INCOMPAT_FLEX_BG:
            low, high = layout.first_block(number), min(high, layout.first_block(number + 1))
        for first, end in _metadata_of(layout, group):
            if not low <= first < end <= high:
                return "bitmap or inode table out of place"
        if group.free_clusters > layout.clusters_in(number):
            return "more free clusters than clusters"
        if group.unused_inodes > layout.inodes_per_group and layout.has_group_checksums:
            return "more unused inodes than inodes"
        return ""

    def _claims(self) -> list[list[_Range]]:
        """For each group the ranges of blocks in it that hold metadata; overlaps are doubted."""
        layout = self._layout
        claims = [
            (first, end, number)
            for number, group in enumerate(self.groups)
            if number not in self.doubts
            for first, end in _metadata_of(layout, group)
        ]
        for number in range(len(self.groups)):
            first = layout.first_block(number)
            if count := layout.base_blocks(number):
                claims.append((first, min(first + count, layout.blocks), number))
        claims.sort()
        result: list[list[_Range]] = [[] for _ in self.groups]
        reached, owner = 0, -1
        for first, end, number in claims:
            if first < reached:
                self.doubts[number] = self.doubts[owner] = "its metadata overlaps another's"
            if end > reached:
                reached, owner = end, number
            self._assign(result, first, end)
        return result

    def _assign(self, result: list[list[_Range]], first: int, end: int) -> None:
        """Part a range of blocks at the borders of groups."""
        layout = self._layout
        while first < end:
            group = (first - layout.first_data_block) // layout.blocks_per_group
            piece_end = min(end, layout.first_block(group + 1))
            result[group].append((first, piece_end))
            first = piece_end

    def metadata_bits(self, group: int) -> int:
        """The clusters of a group that hold metadata, as the bits of an integer."""
        layout, bits = self._layout, 0
        start = layout.first_block(group)
        for first, end in self._metadata[group]:
            low = (first - start) // layout.cluster_blocks
            high = (end - start - 1) // layout.cluster_blocks + 1
            bits |= ((1 << (high - low)) - 1) << low
        return bits

    def has_bitmap(self, group: int) -> bool:
        """Whether the group's bitmap is on the disk (and worth reading)."""
        if group in self.doubts:
            return False
        uninit = self.groups[group].flags & BLOCK_UNINIT
        return not (uninit and self._layout.has_group_checksums)

    def judge_uninit(self, group: int) -> Verdict | None:
        """Judge a group without a bitmap on the disk; see `judge`."""
        return self._believe(group, self.metadata_bits(group))

    def judge(self, group: int, raw: bytes) -> Verdict | None:
        """Judge a group by its bitmap block; a doubt is noted in `doubts` and None returned."""
        clusters = self._layout.clusters_in(group)
        bits, mask = int.from_bytes(raw, "little"), (1 << clusters) - 1
        if bits >> clusters != (1 << (8 * len(raw) - clusters)) - 1:
            self.doubts[group] = "bitmap not padded behind the group's end"
            return None
        bits &= mask
        if self.metadata_bits(group) & ~bits:
            self.doubts[group] = "bitmap calls metadata free"
            return None
        return self._believe(group, bits)

    def _believe(self, group: int, bits: int) -> Verdict | None:
        """A verdict if `bits` agree with the descriptor's count of free clusters."""
        layout = self._layout
        clusters = layout.clusters_in(group)
        free, told = clusters - bits.bit_count(), self.groups[group].free_clusters
        if free != told:
            self.doubts[group] = f"{free} clusters free in the bitmap, {told} in the descriptor"
            return None
        used_bytes = bits.bit_count() * layout.cluster_blocks * layout.block_bytes
        end = layout.first_block(group) + clusters * layout.cluster_blocks
        if end > layout.blocks and bits >> (clusters - 1):
            used_bytes -= (end - layout.blocks) * layout.block_bytes
        packed = zlib.compress(bits.to_bytes((clusters + 7) // 8, "little"), 1)
        return Verdict(used_bytes, packed)

    def check_bitmaps(self, numbers: list[int], bitmaps: list[bytes]) -> None:
        """Doubt the groups whose bitmap contradicts the checksum in their descriptor."""
        layout = self._layout
        if not layout.ro_compat & RO_METADATA_CSUM:
            return
        used_bytes = layout.clusters_per_group // 8
        sums = CRC32C.many([raw[:used_bytes] for raw in bitmaps], layout.checksum_seed)
        mask = 0xFFFFFFFF if layout.descriptor_bytes >= 64 else 0xFFFF
        for group, value in zip(numbers, sums, strict=True):
            if value & mask != self.groups[group].bitmap_checksum:
                self.doubts[group] = "wrong bitmap checksum"


def _metadata_of(layout: Layout, group: Group) -> tuple[_Range, _Range, _Range]:
    """Block bitmap, inode bitmap and inode table of a group as ranges of blocks."""
    table = group.inode_table
    return (
        (group.block_bitmap, group.block_bitmap + 1),
        (group.inode_bitmap, group.inode_bitmap + 1),
        (table, table + layout.table_blocks),
    )
