"""The newest copies of chosen blocks in a journal that has not been written back.

A mounted ext3 or ext4 writes a changed bitmap to its journal first (at a commit, every 5 s unless
mounted otherwise) and to its place much later. So the disk of a guest that was moved while running
holds old bitmaps, and the journal says what they should be. `replay` walks the log as the kernel's
recovery does, transaction by transaction from the recorded tail, and keeps the committed copies of
the blocks asked for. Of a last transaction that lacks its commit only the block numbers are kept:
their newest state is not known.

Where the log lies up to its last commit but one is kept, too (`settled`). Who recorded that a part
of that was written, in a record that began at some time, knows that two commits came after it: of
the transaction that was being committed at that time, if one was, and of the one that was running.

Revocations are passed over: they concern blocks that were freed, and neither bitmaps nor
descriptors are. Fast commits (which describe allocations without the bitmaps) are not understood,
and a log of more than `BUDGET_BYTES` is not read: both raise `Doubt`, as does any contradiction.

Format: Documentation/filesystems/ext4/journal (all big-endian); tag sizes follow
journal_tag_bytes() in fs/jbd2/journal.c.
"""

import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from relocator.filesystem.checksums import CRC32C
from relocator.filesystem.ext_inode import Run
from relocator.filesystem.ext_layout import RO_METADATA_CSUM, Layout
from relocator.filesystem.rounds import ROUND_BYTES, Doubt, Rounds, ask
from relocator.store.geometry import Extent

#: How much of a log is read over the WAN for the sake of newer bitmaps.
BUDGET_BYTES = 64 << 20

_MAGIC = b"\xc0\x3b\x39\x98"
_DESCRIPTOR, _COMMIT, _SUPER_1, _SUPER_2, _REVOKE = 1, 2, 3, 4, 5
_64BIT, _ASYNC, _CSUM_2, _CSUM_3 = 0x2, 0x4, 0x8, 0x10
_KNOWN = 0x1 | _64BIT | _ASYNC | _CSUM_2 | _CSUM_3
_ESCAPED, _SAME_UUID, _LAST = 1, 2, 8
_FULL = 0xFFFFFFFF
_FIRST_READ_BYTES = 128 << 10


@dataclass
class Replay:
    """Newer copies by block number, compressed, and the blocks of an unfinished transaction.

    `settled`: the bytes of the volume that hold the log up to its last commit but one.
    """

    committed: dict[int, bytes] = field(default_factory=dict)
    unfinished: set[int] = field(default_factory=set)
    settled: tuple[Extent, ...] = ()

    def newest(self, block: int, in_place: bytes) -> bytes:
        """The block as it is after recovery."""
        packed = self.committed.get(block)
        return in_place if packed is None else zlib.decompress(packed)


class _Tag(NamedTuple):
    block: int
    flags: int
    checksum: int


@dataclass(frozen=True)
class _Head:
    """The journal's superblock: positions in blocks of the journal."""

    first: int
    end: int
    start: int
    sequence: int
    features: int
    seed: int

    @property
    def has_checksums(self) -> bool:
        return bool(self.features & (_CSUM_2 | _CSUM_3))

    def after(self, position: int) -> int:
        """The next position of the log, which is a ring."""
        return position + 1 if position + 1 < self.end else self.first


class _Log:
    """The journal's blocks through its runs, read ahead in doubling steps within the budget."""

    def __init__(self, layout: Layout, runs: list[Run], volume_bytes: int) -> None:
        self._layout, self._runs, self._volume_bytes = layout, runs, volume_bytes
        self._starts = [run.logical for run in runs]
        self._window, self._window_first = b"", 0
        self._step_bytes = max(_FIRST_READ_BYTES, layout.block_bytes)
        self._read_bytes = 0
        self.end = runs[-1].logical + runs[-1].blocks if runs else 0

    def block(self, position: int) -> Rounds[bytes]:
        """One block of the journal."""
        size = self._layout.block_bytes
        at = (position - self._window_first) * size
        if not 0 <= at < len(self._window):
            yield from self._fill(position)
            at = 0
        return self._window[at : at + size]

    def expect_end(self, position: int, sequence: int) -> None:
        """Doubt an end at `position` behind which more of transaction `sequence` is in sight.

        Or of a later one: recovery would stop here, but so it would at a damaged block. What an
        earlier turn of the ring has left has lower numbers.
        """
        size = self._layout.block_bytes
        for at in range((position + 1 - self._window_first) * size, len(self._window), size):
            ahead = (_number(self._window, at + 8) - sequence) & _FULL
            if self._window[at : at + 4] == _MAGIC and ahead < 1 << 31:
                raise Doubt(f"journal: transaction {sequence} is broken off")

    def _fill(self, position: int) -> Rounds[None]:
        """Read the window anew, from `position` on."""
        wanted = list(self.extents(position, self._step_bytes // self._layout.block_bytes))
        self._read_bytes += sum(extent.length for extent in wanted)
        if self._read_bytes > BUDGET_BYTES:
            raise Doubt(f"journal: more than {BUDGET_BYTES >> 20} MiB not yet written back")
        self._window = b"".join((yield from ask(wanted, self._volume_bytes)))
        self._window_first = position
        self._step_bytes = min(2 * self._step_bytes, ROUND_BYTES)

    def extents(self, position: int, count: int) -> Iterator[Extent]:
        """Up to `count` blocks from `position` on, until the journal's end."""
        at = bisect_right(self._starts, position) - 1
        if at < 0 or position >= self.end:
            raise Doubt(f"journal: has no block {position}")
        while count > 0 and at < len(self._runs):
            run = self._runs[at]
            skip = position - run.logical
            if not 0 <= skip < run.blocks:
                raise Doubt(f"journal: a hole at block {position}")
            taken = min(count, run.blocks - skip)
            yield self._layout.extent(run.physical + skip, taken)
            position, count, at = position + taken, count - taken, at + 1


def replay(
    layout: Layout, runs: list[Run], interest: set[int], volume_bytes: int
) -> Rounds[Replay]:
    """Walk the log of the journal at `runs` and keep copies of the blocks of `interest`."""
    log = _Log(layout, runs, volume_bytes)
    head = _parse_head((yield from log.block(0)), layout, log.end)
    result = Replay()
    if not head.start:
        log.expect_end(0, head.sequence)
        return result
    batch: dict[int, tuple[bytes, bool]] = {}
    position, sequence, left = head.start, head.sequence, head.end - head.first
    ends = [left, left]  # what was left of the ring at the last commit but one, and at the last
    while left > 0:
        raw = yield from log.block(position)
        kind = _kind(raw, sequence)
        if kind not in (_DESCRIPTOR, _COMMIT, _REVOKE):
            if position == head.start:
                raise Doubt(f"journal: transaction {sequence} is not where it should start")
            log.expect_end(position, sequence)
            break
        position, left = head.after(position), left - 1
        if kind == _COMMIT:
            _check_commit(head, raw)
            _take(result, batch)
            batch, sequence = {}, (sequence + 1) & _FULL
            ends = [ends[1], left]
        elif kind == _DESCRIPTOR:
            for tag in _tags(head, raw):
                if tag.block in interest:
                    data = yield from log.block(position)
                    batch[tag.block] = _plain(tag, data), _is_right(head, tag, data, sequence)
                position, left = head.after(position), left - 1
    result.unfinished.update(batch)
    settled = head.end - head.first - ends[0]
    to_end = min(settled, head.end - head.start)
    parts = log.extents(head.start, to_end), log.extents(head.first, settled - to_end)
    result.settled = tuple(chain.from_iterable(parts))
    return result


def _take(result: Replay, batch: dict[int, tuple[bytes, bool]]) -> None:
    """A transaction is complete: its copies are now the newest."""
    for block, (data, right) in batch.items():
        if not right:
            raise Doubt(f"journal: the copy of block {block} has a wrong checksum")
        result.committed[block] = zlib.compress(data, 1)


def _number(raw: bytes, offset: int, width_bytes: int = 4) -> int:
    return int.from_bytes(raw[offset : offset + width_bytes], "big")


def _parse_head(raw: bytes, layout: Layout, blocks: int) -> _Head:
    kind = _number(raw, 4)
    if raw[:4] != _MAGIC or kind not in (_SUPER_1, _SUPER_2):
        raise Doubt("journal: no superblock")
    features = _number(raw, 0x28) if kind == _SUPER_2 else 0
    if unknown := features & ~_KNOWN:
        raise Doubt(f"journal: features {unknown:#x} are not understood (0x20: fast commits)")
    head = _Head(
        first=_number(raw, 0x14),
        end=_number(raw, 0x10),
        start=_number(raw, 0x1C),
        sequence=_number(raw, 0x18),
        features=features,
        seed=CRC32C.one(raw[0x30:0x40], _FULL),
    )
    if layout.ro_compat & RO_METADATA_CSUM and not head.has_checksums:
        raise Doubt("journal: no checksums, though the file system has them")
    if head.has_checksums:
        plain = raw[:0xFC] + bytes(4) + raw[0x100:1024]
        if raw[0x50] != 4 or CRC32C.one(plain, _FULL) != _number(raw, 0xFC):
            raise Doubt("journal: wrong checksum of its superblock")
    if _number(raw, 0xC) != layout.block_bytes or _number(raw, 0x20):
        raise Doubt("journal: another block size, or an error on record")
    if not 0 < head.first < head.end <= blocks:
        raise Doubt(f"journal: blocks {head.first} to {head.end} of {blocks}")
    if head.start and not head.first <= head.start < head.end:
        raise Doubt(f"journal: starts at {head.start}")
    return head


def _kind(raw: bytes, sequence: int) -> int:
    """The type of a block of the log, 0 if it is none of this transaction."""
    return _number(raw, 4) if raw[:4] == _MAGIC and _number(raw, 8) == sequence else 0


def _check_commit(head: _Head, raw: bytes) -> None:
    if head.has_checksums:
        plain = raw[:0x10] + bytes(4) + raw[0x14:]
        if CRC32C.one(plain, head.seed) != _number(raw, 0x10):
            raise Doubt("journal: wrong checksum of a commit")


def _tags(head: _Head, raw: bytes) -> list[_Tag]:
    """Which blocks follow a descriptor block."""
    end = len(raw)
    if head.has_checksums:
        end -= 4
        if CRC32C.one(raw[:end] + bytes(4), head.seed) != _number(raw, end):
            raise Doubt("journal: wrong checksum of a descriptor")
    wide = bool(head.features & _64BIT)
    # 8 bytes, 4 more if wide; version 2 of the checksums adds 2 unused ones, version 3 is 16
    size = 16 if head.features & _CSUM_3 else 8 + 4 * wide + 2 * bool(head.features & _CSUM_2)
    tags: list[_Tag] = []
    at = 12
    while at + size <= end:
        if size == 16:
            flags, checksum = _number(raw, at + 4), _number(raw, at + 12)
        else:
            checksum, flags = _number(raw, at + 4, 2), _number(raw, at + 6, 2)
        tags.append(_Tag(_number(raw, at) | (_number(raw, at + 8) << 32) * wide, flags, checksum))
        at += size if flags & _SAME_UUID else size + 16
        if flags & _LAST:
            break
    return tags


def _is_right(head: _Head, tag: _Tag, data: bytes, sequence: int) -> bool:
    """Whether a logged block has the checksum of its tag."""
    if not head.has_checksums:
        return True
    mask = _FULL if head.features & _CSUM_3 else 0xFFFF
    return CRC32C.one(sequence.to_bytes(4, "big") + data, head.seed) & mask == tag.checksum


def _plain(tag: _Tag, data: bytes) -> bytes:
    """A logged block as it is written back: the magic number was masked in the log."""
    return _MAGIC + data[4:] if tag.flags & _ESCAPED else data
