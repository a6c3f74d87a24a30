"""Reads what the kernel's dm-log-writes has logged, and makes the disks a power failure may leave.

The format is that of Documentation/admin-guide/device-mapper/log-writes.rst and its driver: a
superblock, then entries, each in a sector of its own with a write's data behind it (a mark's text
is in the entry's sector). The order is that of durability: a write that was not FUA is logged
together with the flush that covers it, in front of it. So after any prefix of the log everything
that the drive had promised to keep is there. What it had not promised may be there or not: of the
plain writes in front of a flush that has not completed, any subset.
"""

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
_SUPERBLOCK = struct.Struct("<QQQI")  # magic, version, entries, bytes a sector
_ENTRY = struct.Struct("<QQQQ")  # sector, sectors, flags, data length


@dataclass(frozen=True)
class Entry:
    """One line of the log. `offset` is where on the disk, `at` where in the log its data is."""

    index: int
    offset: int
    length: int
    flags: int
    at: int
    text: str = ""

    @property
    def plain(self) -> bool:
        """Whether the drive owes nothing for it until the next flush."""
        return not self.flags & (FLUSH | FUA | MARK)


@dataclass(frozen=True)
class Point:
    """A moment at which power fails: `after` that entry, with `lost` plain writes missing."""

    after: int
    lost: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"after entry {self.after}" + (f" without {sorted(self.lost)}" if self.lost else "")


class WriteLog:
    """A log of which all bytes are at hand."""

    def __init__(self, log: bytes) -> None:
        self._log = memoryview(log)
        magic, version, count, sector = _SUPERBLOCK.unpack_from(log)
        if (magic, version) != (MAGIC, 1):
            raise ValueError("not a log of dm-log-writes, version 1")
        self.entries = list(self._read(count, sector))

    def _read(self, count: int, sector_bytes: int) -> Iterator[Entry]:
        at = sector_bytes
        for index in range(count):
            head = bytes(self._log[at : at + sector_bytes])
            sector, sectors, flags, data_length = _ENTRY.unpack_from(head)
            at += sector_bytes
            text = ""
            if flags & MARK:
                text = head[_ENTRY.size : _ENTRY.size + data_length].rstrip(b"\0").decode()
            length = sectors * sector_bytes
            yield Entry(index, sector * sector_bytes, length, flags, at, text)
            if not flags & (DISCARD | MARK):
                at += length

    def apply(self, entry: Entry, write: Callable[[bytes | memoryview, int], object]) -> None:
        """Do to a disk what the entry says; a discarded range reads as zero."""
        if entry.length == 0 or entry.flags & MARK:
            return
        if entry.flags & DISCARD:
            write(bytes(entry.length), entry.offset)
            return
        write(self._log[entry.at : entry.at + entry.length], entry.offset)


def kept_by(entries: list[Entry], after: int, start: int) -> int:
    """The index below which nothing can be lost any more, looking from `start` on."""
    flushes = (at for at in range(after, start - 1, -1) if entries[at].flags & FLUSH)
    return next(flushes, start - 1) + 1


def every_point(entries: list[Entry], first: int) -> list[Point]:
    """A power failure after each entry from `first` on that changed or promised something."""
    return [Point(entry.index) for entry in entries[first:] if not entry.flags & MARK]


def promises(entries: list[Entry], points: list[Point]) -> list[Point]:
    """Those of `points` that follow a flush or FUA write."""
    return [point for point in points if not entries[point.after].plain]


def lossy_points(entries: list[Entry], first: int, seed: int, each: int) -> list[Point]:
    """`each` power failures in front of every flush that each lose a random part of what it covers.

    One of them loses all of it but the last write: the most out of order that can be.
    """
    choose = random.Random(seed)
    found: list[Point] = []
    open_writes: list[int] = []
    for entry in entries[first:]:
        if entry.plain:
            open_writes.append(entry.index)
        elif entry.flags & FLUSH:
            if len(open_writes) > 1:
                found.append(Point(open_writes[-1], frozenset(open_writes[:-1])))
                for _ in range(each - 1):
                    share = choose.random()
                    lost = frozenset(at for at in open_writes if choose.random() < share)
                    found.append(Point(open_writes[-1], lost))
            open_writes = []
    return found
