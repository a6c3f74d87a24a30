"""Where the blocks of one inode are: what it takes to find the journal.

Both ways of ext are read: the tree of extents (ext4) and the three levels of indirect blocks (ext2,
ext3). A tree is read level by level, one round each; whatever leaves the file system, runs in
circles or contradicts its checksum raises `Doubt`. Format: Documentation/filesystems/ext4, inodes
and ifork; checksums over (seed, inode number, generation, content).
"""

import struct
from typing import NamedTuple

from relocator.filesystem.checksums import CRC32C
from relocator.filesystem.ext_layout import RO_METADATA_CSUM, Layout
from relocator.filesystem.rounds import Doubt, Rounds, ask, ask_one

_EXTENTS_FLAG = 0x80000
_EXTENT_MAGIC = 0xF30A
_MAX_DEPTH = 5
_MAX_NODES = 1024
#: A longer extent says: allocated but not written.
_MAX_WRITTEN = 1 << 15
_DIRECT = 12


class Run(NamedTuple):
    """`blocks` of the file from `logical` on are the volume's from `physical` on."""

    logical: int
    physical: int
    blocks: int


def runs(layout: Layout, number: int, table_block: int, volume_bytes: int) -> Rounds[list[Run]]:
    """The runs of inode `number`, ascending, given the first block of its group's inode table.

    Raises `Doubt`. Holes are left out.
    """
    index = (number - 1) % layout.inodes_per_group
    offset = table_block * layout.block_bytes + index * layout.inode_bytes
    raw = yield from ask_one(offset, layout.inode_bytes, volume_bytes)
    seed = _inode_seed(layout, number, raw)
    fork, flags = raw[0x28:0x64], int.from_bytes(raw[0x20:0x24], "little")
    if flags & _EXTENTS_FLAG:
        found = yield from _from_extents(layout, fork, seed, volume_bytes)
    else:
        found = yield from _from_pointers(layout, fork, volume_bytes)
    found.sort()
    for run in found:
        if run.physical <= 0 or run.physical + run.blocks > layout.blocks:
            raise Doubt(f"inode {number}: blocks outside of the file system")
    return found


def _inode_seed(layout: Layout, number: int, raw: bytes) -> int:
    """The seed of the inode's checksums, once its own has been found right."""
    if not layout.ro_compat & RO_METADATA_CSUM:
        return 0
    seed = CRC32C.one(number.to_bytes(4, "little") + raw[0x64:0x68], layout.checksum_seed)
    stored, mask = int.from_bytes(raw[0x7C:0x7E], "little"), 0xFFFF
    plain = raw[:0x7C] + b"\0\0" + raw[0x7E:]
    if len(raw) > 128 and int.from_bytes(raw[0x80:0x82], "little") >= 4:
        stored, mask = stored | int.from_bytes(raw[0x82:0x84], "little") << 16, 0xFFFFFFFF
        plain = plain[:0x82] + b"\0\0" + plain[0x84:]
    if CRC32C.one(plain, seed) & mask != stored:
        raise Doubt(f"inode {number}: wrong checksum")
    return seed


def _from_extents(layout: Layout, root: bytes, seed: int, volume_bytes: int) -> Rounds[list[Run]]:
    found: list[Run] = []
    nodes, depth, seen = [root], None, 0
    while nodes:
        children: list[int] = []
        for node in nodes:
            entries, node_depth = _extent_header(node)
            if depth is not None and node_depth != depth:
                raise Doubt("extent tree: levels disagree")
            depth = node_depth
            for entry in range(12, 12 + 12 * entries, 12):
                if depth:
                    low, high = struct.unpack_from("<IH", node, entry + 4)
                    children.append(low | high << 32)
                else:
                    logical, count, high, low = struct.unpack_from("<IHHI", node, entry)
                    if count > _MAX_WRITTEN:
                        raise Doubt("extent tree: blocks that were never written")
                    found.append(Run(logical, low | high << 32, count))
        if not children:
            return found
        seen += len(children)
        if seen > _MAX_NODES:
            raise Doubt("extent tree: too many nodes")
        nodes = yield from ask([layout.extent(block) for block in children], volume_bytes)
        for node in nodes:
            _check_node(layout, node, seed)
        depth = (depth or 0) - 1
    return found


def _extent_header(node: bytes) -> tuple[int, int]:
    """Entries and depth of a node of the extent tree."""
    magic, entries, most, depth = struct.unpack_from("<HHHH", node)
    if magic != _EXTENT_MAGIC or entries > most or 12 + 12 * most > len(node):
        raise Doubt("extent tree: not a node")
    if depth > _MAX_DEPTH:
        raise Doubt(f"extent tree: depth {depth}")
    return entries, depth


def _check_node(layout: Layout, node: bytes, seed: int) -> None:
    if not layout.ro_compat & RO_METADATA_CSUM:
        return
    _extent_header(node)
    tail = 12 + 12 * int.from_bytes(node[4:6], "little")
    if CRC32C.one(node[:tail], seed) != int.from_bytes(node[tail : tail + 4], "little"):
        raise Doubt("extent tree: wrong checksum")


def _from_pointers(layout: Layout, fork: bytes, volume_bytes: int) -> Rounds[list[Run]]:
    pointers = struct.unpack("<15I", fork)
    found = [Run(at, block, 1) for at, block in enumerate(pointers[:_DIRECT]) if block]
    per_block = layout.block_bytes // 4
    # (block of pointers, logical block of its first one, levels below)
    pending, logical = [], _DIRECT
    for level, block in enumerate(pointers[_DIRECT:]):
        if block:
            pending.append((block, logical, level))
        logical += per_block ** (level + 1)
    seen = 0
    while pending:
        seen += len(pending)
        if seen > _MAX_NODES:
            raise Doubt("indirect blocks: too many")
        wanted = [layout.extent(block) for block, _, _ in pending]
        answers = yield from ask(wanted, volume_bytes)
        below = []
        for raw, (_, first, level) in zip(answers, pending, strict=True):
            step = per_block**level
            for at, block in enumerate(struct.unpack(f"<{per_block}I", raw)):
                if block and level:
                    below.append((block, first + at * step, level - 1))
                elif block:
                    found.append(Run(first + at, block, 1))
        pending = below
    return _joined(sorted(found))


def _joined(found: list[Run]) -> list[Run]:
    """Neighbouring runs made one."""
    joined: list[Run] = []
    for run in found:
        last = joined[-1] if joined else Run(0, 0, 0)
        together = (last.logical + last.blocks, last.physical + last.blocks)
        if joined and together == (run.logical, run.physical):
            joined[-1] = last._replace(blocks=last.blocks + run.blocks)
        else:
            joined.append(run)
    return joined
