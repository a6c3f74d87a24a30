"""Where an ext2, ext3 or ext4 file system keeps what: superblock, groups, descriptors.

Every number here comes from a disk that may be damaged, half written or not ext at all, so a
superblock is taken only whole: known features, sizes that agree with each other and with the
volume, a right checksum where there is one. Anything else raises `Doubt`, and the caller falls
back to copying plainly. Redundancy does the work where checksums are missing: blocks and clusters
of a group, the number of inodes and the first data block each follow from other fields.

Units: *block* is the file system's; *cluster* is the unit of its bitmaps, one block unless
bigalloc. Format: the kernel's Documentation/filesystems/ext4 (super, group_descr, blockgroup,
blockmap, bigalloc, checksums); details that it leaves open follow fs/ext4/super.c and balloc.c.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from relocator.filesystem.checksums import CRC16, CRC32C
from relocator.filesystem.rounds import Doubt
from relocator.store.geometry import Extent

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_BYTES = 1024
MAGIC = 0xEF53
#: More groups than this are not worth their memory here: 32 TiB in 4 KiB blocks.
MAX_GROUPS = 1 << 18

COMPAT_HAS_JOURNAL, COMPAT_SPARSE_SUPER2, COMPAT_FAST_COMMIT = 0x4, 0x200, 0x400
INCOMPAT_RECOVER, INCOMPAT_JOURNAL_DEV, INCOMPAT_META_BG = 0x4, 0x8, 0x10
INCOMPAT_EXTENTS, INCOMPAT_64BIT, INCOMPAT_FLEX_BG = 0x40, 0x80, 0x200
INCOMPAT_CSUM_SEED = 0x2000
RO_SPARSE_SUPER, RO_GDT_CSUM, RO_BIGALLOC, RO_METADATA_CSUM = 0x1, 0x10, 0x200, 0x400

#: filetype recover journal_dev meta_bg extents 64bit mmp flex_bg ea_inode dirdata csum_seed
#: large_dir inline_data encrypt casefold. Not compression (0x1): never finished, gone for long.
KNOWN_INCOMPAT = 0x2 | 0x4 | 0x8 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x3F000
#: sparse_super large_file btree_dir huge_file gdt_csum dir_nlink extra_isize quota bigalloc
#: metadata_csum read-only project shared_blocks verity orphan_present. Not has_snapshot, replica.
KNOWN_RO = 0x7F | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x10000

STATE_VALID, STATE_ERROR, STATE_ORPHANS = 1, 2, 4
INODE_UNINIT, BLOCK_UNINIT = 1, 2

_FULL = 0xFFFFFFFF


class Group(NamedTuple):
    """A group descriptor: block numbers, free clusters, unused inodes, flags, bitmap checksum."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    free_clusters: int
    unused_inodes: int
    flags: int
    bitmap_checksum: int


@dataclass(frozen=True)
class Layout:
    """A superblock that has been believed, and what follows from it."""

    blocks: int
    block_bytes: int
    cluster_blocks: int
    first_data_block: int
    blocks_per_group: int
    inodes_per_group: int
    inode_bytes: int
    descriptor_bytes: int
    reserved_gdt_blocks: int
    first_meta_bg: int
    backup_groups: tuple[int, int]
    compat: int
    incompat: int
    ro_compat: int
    state: int
    checksum_seed: int
    uuid: bytes
    label: str
    journal_inode: int

    @property
    def group_count(self) -> int:
        return -(-(self.blocks - self.first_data_block) // self.blocks_per_group)

    @property
    def clusters_per_group(self) -> int:
        return self.blocks_per_group // self.cluster_blocks

    @property
    def table_blocks(self) -> int:
        """Blocks of one group's inode table."""
        return -(-self.inodes_per_group * self.inode_bytes // self.block_bytes)

    @property
    def descriptors_per_block(self) -> int:
        return self.block_bytes // self.descriptor_bytes

    @property
    def descriptor_blocks(self) -> int:
        return -(-self.group_count // self.descriptors_per_block)

    @property
    def has_group_checksums(self) -> bool:
        return bool(self.ro_compat & (RO_GDT_CSUM | RO_METADATA_CSUM))

    def first_block(self, group: int) -> int:
        return self.first_data_block + group * self.blocks_per_group

    def clusters_in(self, group: int) -> int:
        """Clusters of a group; a last one may be short, its last cluster too."""
        end = min(self.first_block(group + 1), self.blocks)
        return -(-(end - self.first_block(group)) // self.cluster_blocks)

    def has_super(self, group: int) -> bool:
        """Whether the group begins with a (copy of the) superblock."""
        if group == 0:
            return True
        if self.compat & COMPAT_SPARSE_SUPER2:
            return group in self.backup_groups
        if group == 1 or not self.ro_compat & RO_SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    def base_blocks(self, group: int) -> int:
        """Blocks at a group's start taken by superblock, descriptors and room for more of them."""
        count = int(self.has_super(group))
        per_block = self.descriptors_per_block
        meta = bool(self.incompat & INCOMPAT_META_BG)
        if not meta or group < self.first_meta_bg * per_block:
            if count:
                count += self.first_meta_bg if meta else self.descriptor_blocks
                count += self.reserved_gdt_blocks
        elif group % per_block in (0, 1, per_block - 1):
            count += 1
        # 1 KiB blocks in larger clusters: block 0 is the boot block, yet belongs to group 0
        quirk = group == 0 and self.block_bytes == 1024 and self.first_data_block == 0
        return count + quirk

    def descriptor_block(self, index: int) -> int:
        """The block that holds the `index`-th block of group descriptors."""
        if not self.incompat & INCOMPAT_META_BG or index < self.first_meta_bg:
            return SUPERBLOCK_OFFSET // self.block_bytes + 1 + index
        group = index * self.descriptors_per_block
        before = self.base_blocks(group) - 1
        return self.first_block(group) + before

    def extent(self, first_block: int, count: int = 1) -> Extent:
        """Blocks as bytes of the volume."""
        return Extent(first_block * self.block_bytes, count * self.block_bytes)

    def group(self, raw: bytes) -> Group:
        """Decode one descriptor of `descriptor_bytes`."""
        low = _DESCRIPTOR.unpack_from(raw)
        high = _DESCRIPTOR_HIGH.unpack_from(raw, 32) if len(raw) >= 64 else (0,) * 8
        wide = self.incompat & INCOMPAT_64BIT
        upper = high if wide else (0,) * 8
        return Group(
            block_bitmap=low[0] | upper[0] << 32,
            inode_bitmap=low[1] | upper[1] << 32,
            inode_table=low[2] | upper[2] << 32,
            free_clusters=low[3] | upper[3] << 16,
            unused_inodes=low[9] | upper[6] << 16,
            flags=low[6],
            bitmap_checksum=low[7] | upper[7] << 16,
        )

    def checksum_faults(self, raws: list[bytes]) -> list[bool]:
        """For each descriptor, in group order, whether its checksum contradicts it.

        Without the features that define one, a checksum or an UNINIT flag is a contradiction.
        """
        stored = [int.from_bytes(raw[30:32], "little") for raw in raws]
        numbers = [group.to_bytes(4, "little") for group in range(len(raws))]
        if self.ro_compat & RO_METADATA_CSUM:
            rows = [
                number + raw[:30] + b"\0\0" + raw[32:]
                for number, raw in zip(numbers, raws, strict=True)
            ]
            right = [value & 0xFFFF for value in CRC32C.many(rows, self.checksum_seed)]
        elif self.ro_compat & RO_GDT_CSUM:
            rows = [number + raw[:30] + raw[32:] for number, raw in zip(numbers, raws, strict=True)]
            right = CRC16.many(rows, CRC16.one(self.uuid, 0xFFFF))
        else:
            uninit = [raw[18] & (INODE_UNINIT | BLOCK_UNINIT) for raw in raws]
            return [bool(flags or value) for flags, value in zip(uninit, stored, strict=True)]
        return [value != wanted for value, wanted in zip(stored, right, strict=True)]


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


# block_bitmap inode_bitmap inode_table free_blocks free_inodes used_dirs flags (exclude_bitmap)
# block_bitmap_csum inode_bitmap_csum itable_unused checksum
_DESCRIPTOR = struct.Struct("<IIIHHHH4xHHHH")
# the upper halves: bitmaps, table, free_blocks free_inodes used_dirs itable_unused
# (exclude_bitmap) block_bitmap_csum
_DESCRIPTOR_HIGH = struct.Struct("<IIIHHHH4xH")


def parse(raw: bytes, volume_bytes: int) -> Layout:
    """The layout told by a superblock of 1024 bytes; raises `Doubt` with the reason."""

    def number(offset: int, width_bytes: int = 4) -> int:
        return int.from_bytes(raw[offset : offset + width_bytes], "little")

    if number(0x38, 2) != MAGIC:
        raise Doubt("no ext2, ext3 or ext4 superblock")
    compat, incompat, ro_compat = number(0x5C), number(0x60), number(0x64)
    _check_features(number(0x4C), incompat, ro_compat)
    _check_checksum(raw, ro_compat)
    log_block = number(0x18)
    log_cluster = number(0x1C) if ro_compat & RO_BIGALLOC else log_block
    if log_block > 6 or not log_block <= log_cluster <= log_block + 20:
        raise Doubt(f"superblock: block size 2^{10 + log_block}, cluster 2^{10 + log_cluster}")
    wide = bool(incompat & INCOMPAT_64BIT)
    revised = number(0x4C) >= 1
    layout = Layout(
        blocks=number(0x4) | number(0x150) << 32,
        block_bytes=1024 << log_block,
        cluster_blocks=1 << (log_cluster - log_block),
        first_data_block=number(0x14),
        blocks_per_group=number(0x20),
        inodes_per_group=number(0x28),
        inode_bytes=number(0x58, 2) if revised else 128,
        descriptor_bytes=number(0xFE, 2) if wide else 32,
        reserved_gdt_blocks=number(0xCE, 2),
        first_meta_bg=number(0x104),
        backup_groups=(number(0x24C), number(0x250)),
        compat=compat,
        incompat=incompat,
        ro_compat=ro_compat,
        state=number(0x3A, 2),
        checksum_seed=(
            number(0x270) if incompat & INCOMPAT_CSUM_SEED else CRC32C.one(raw[0x68:0x78], _FULL)
        ),
        uuid=raw[0x68:0x78],
        label=raw[0x78:0x88].split(b"\0")[0].decode("utf-8", "replace"),
        journal_inode=number(0xE0) if not number(0xE4) else 0,
    )
    _check_sizes(layout, number(0x24), number(0x0), number(0x5A, 2), volume_bytes)
    return layout


def _check_features(revision: int, incompat: int, ro_compat: int) -> None:
    if revision > 1:
        raise Doubt(f"superblock: revision {revision} is not known")
    if incompat & INCOMPAT_JOURNAL_DEV:
        raise Doubt("this is the external journal of a file system elsewhere")
    if unknown := incompat & ~KNOWN_INCOMPAT:
        raise Doubt(f"superblock: unknown incompatible features {unknown:#x}")
    if unknown := ro_compat & ~KNOWN_RO:
        raise Doubt(f"superblock: unknown read-only features {unknown:#x}")
    if revision == 0 and (incompat & ~INCOMPAT_RECOVER or ro_compat):
        raise Doubt("superblock: features in a revision that has none")


def _check_checksum(raw: bytes, ro_compat: int) -> None:
    """The superblock's own checksum; its type must say whether there is one."""
    kind = raw[0x175]
    if not ro_compat & RO_METADATA_CSUM:
        if kind:
            raise Doubt("superblock: a checksum type without the metadata_csum feature")
    elif kind != 1:
        raise Doubt(f"superblock: checksum type {kind} is not known")
    elif CRC32C.one(raw[:0x3FC], _FULL) != int.from_bytes(raw[0x3FC:], "little"):
        raise Doubt("superblock: wrong checksum")


def _check_sizes(
    layout: Layout, clusters_per_group: int, inodes: int, own_group: int, volume_bytes: int
) -> None:
    """Each size against the others; raises `Doubt` with those that don't fit."""
    block, size, descriptor = layout.block_bytes, layout.inode_bytes, layout.descriptor_bytes
    first = 1 if block == 1024 and not layout.ro_compat & RO_BIGALLOC else 0
    wide = bool(layout.incompat & INCOMPAT_64BIT)
    sane_group = 8 <= clusters_per_group <= 8 * block and clusters_per_group % 8 == 0
    if not sane_group or layout.blocks_per_group != clusters_per_group * layout.cluster_blocks:
        raise Doubt(
            f"superblock: groups of {layout.blocks_per_group} blocks, {clusters_per_group} clusters"
        )
    if layout.first_data_block != first or layout.blocks <= first or own_group:
        raise Doubt(f"superblock: first block {layout.first_data_block}, group {own_group}")
    groups = layout.group_count
    rules = {
        f"{layout.blocks} blocks of {block} in {volume_bytes} bytes": (
            layout.blocks <= volume_bytes // block and (wide or layout.blocks < 1 << 32)
        ),
        f"group descriptors of {descriptor} bytes": (
            _is_power_of_two(descriptor) and (64 if wide else 32) <= descriptor <= min(1024, block)
        ),
        f"inodes of {size} bytes": _is_power_of_two(size) and 128 <= size <= block,
        f"{inodes} inodes in {groups} groups of {layout.inodes_per_group}": (
            0 < layout.inodes_per_group <= 8 * block and inodes == layout.inodes_per_group * groups
        ),
        f"{groups} groups, more than the {MAX_GROUPS} handled here": groups <= MAX_GROUPS,
        f"{layout.reserved_gdt_blocks} reserved blocks for descriptors": (
            layout.reserved_gdt_blocks <= block // 4
        ),
    }
    if broken := [text for text, kept in rules.items() if not kept]:
        raise Doubt("superblock: " + "; ".join(broken))
    if layout.incompat & INCOMPAT_META_BG and layout.first_meta_bg > layout.descriptor_blocks:
        raise Doubt(f"superblock: first_meta_bg {layout.first_meta_bg}")


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
