"""What volumes a disk image holds: no table, MBR or GPT, and what each volume seems to contain.

The answer serves to find file systems whose free blocks may be left for last, so it errs on the
side of ignorance. A table is believed if its signature, checksums and entries make sense; an entry
that leaves the disk, overlaps another or is empty is left out and noted; where a table *and* a
file system claim the same disk, or two formats the same volume, neither is believed ("unknown").
Bytes outside of all volumes (the tables, gaps, entries left out) must be taken to be in use, and
so must every volume whose kind isn't understood.

A GPT shows by where its header is whether sectors have 512 or 4096 bytes. An MBR doesn't, so 512 is
meant: on a 4096-byte disk nothing is found where it points, and all stays in use. What can't be
seen is a format without a signature here, laid over an old file system so that the old
superblock, descriptors and bitmaps are still whole.

Formats: UEFI specification 2.10, chapter 5 (GPT, protective MBR); for MBR and its chain of extended
boot records the customs of Linux' block/partitions/msdos.c.
"""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from relocator.filesystem.rounds import Doubt, Rounds, ask, ask_one
from relocator.store.geometry import Extent

#: kind, offset in the volume, bytes found there.
SIGNATURES = (
    ("ext", 1080, b"\x53\xef"),
    *(("LVM", offset, b"LABELONE") for offset in (0, 512, 1024, 1536)),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    *(("swap", page - 10, b"SWAPSPACE2") for page in (4096, 8192, 16384, 32768, 65536)),
    ("swap", 4086, b"S1SUSPEND"),
    ("XFS", 0, b"XFSB"),
    ("Btrfs", 65600, b"_BHRfS_M"),
    ("NTFS", 3, b"NTFS    "),
    ("exFAT", 3, b"EXFAT   "),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("FAT", 54, b"FAT1"),
    ("FAT", 82, b"FAT32"),
    ("ISO9660", 32769, b"CD001"),
    ("UDF", 32769, b"BEA01"),
    ("ZFS", 16404, b"\x00\x00\x00\x07version"),
    ("RAID", 0, b"\xfc\x4e\x2b\xa9"),
    ("RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    ("bcache", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    ("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
    ("HFS+", 1024, b"H+\x00\x04"),
    ("APFS", 32, b"NXSB"),
    ("JFS", 32768, b"JFS1"),
    ("ReiserFS", 65588, b"ReIsEr"),
    ("SquashFS", 0, b"hsqs"),
    ("BlueStore", 0, b"bluestore block device"),
)
PROBE_BYTES = 68 << 10
#: Their first sector carries the mark of an MBR and code where its entries would be.
_WITH_BOOT_SECTOR = {"NTFS", "exFAT", "BitLocker", "FAT"}

#: Bytes of a sector: what an MBR means, and what a GPT may mean.
_SECTOR = 512
_SECTORS = (512, 4096)
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_MAX_LOGICAL = 128
_MAX_ENTRIES_BYTES = 1 << 20


@dataclass(frozen=True)
class Volume:
    """A stretch of the disk in bytes, what is in it, and what to call it."""

    offset: int
    length: int
    name: str
    kind: str = "unknown"

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True)
class Disk:
    """`table` is "none", "MBR", "GPT" or "unknown"; `notes` tell what was not believed, and why."""

    table: str
    volumes: tuple[Volume, ...]
    notes: tuple[str, ...] = ()


def survey(size_bytes: int) -> Rounds[Disk]:
    """The volumes of a disk of `size_bytes`, ascending; in rounds of reads."""
    try:
        return (yield from _survey(size_bytes))
    except Doubt as doubt:
        return _unbelieved(size_bytes, str(doubt))


def kind_of(head: bytes) -> tuple[str, str]:
    """The kind told by a volume's first `PROBE_BYTES`, and a note if signatures contradict."""
    kinds = {kind: None for kind, at, magic in SIGNATURES if head[at : at + len(magic)] == magic}
    if "ext" in kinds and len(kinds) > 1:
        return "unknown", f"signatures of {' and '.join(kinds)}: not believed"
    return next(iter(kinds), "unknown"), ""


def _unbelieved(size_bytes: int, reason: str) -> Disk:
    volumes = (Volume(0, size_bytes, "whole disk"),) if size_bytes else ()
    return Disk("unknown", volumes, (reason,))


def _survey(size_bytes: int) -> Rounds[Disk]:
    if size_bytes <= 0:
        return Disk("none", ())
    head = yield from ask_one(0, min(PROBE_BYTES, size_bytes), size_bytes)
    kind, note = kind_of(head)
    entries = [] if kind in _WITH_BOOT_SECTOR else _mbr_entries(head)
    types = {entry.type for entry in entries}
    if _PROTECTIVE in types:
        disk = yield from _gpt(head, size_bytes)
    elif any(head[sector : sector + 8] == b"EFI PART" for sector in _SECTORS):
        raise Doubt("a GPT header without its protective MBR: not believed")
    elif entries:
        disk = yield from _mbr(entries, size_bytes)
    else:
        notes = (f"whole disk: {note}",) if note else ()
        return Disk("none", (Volume(0, size_bytes, "whole disk", kind),), notes)
    if head[1080:1082] == b"\x53\xef":
        raise Doubt(f"both a {disk.table} table and a file system on the whole disk: not believed")
    return disk


def _probe(disk: Disk, size_bytes: int) -> Rounds[Disk]:
    """Fill in what each volume holds, in one round."""
    wanted = [Extent(volume.offset, min(PROBE_BYTES, volume.length)) for volume in disk.volumes]
    if not wanted:
        return disk
    heads = yield from ask(wanted, size_bytes)
    volumes, notes = [], list(disk.notes)
    for volume, head in zip(disk.volumes, heads, strict=True):
        kind, note = kind_of(head)
        volumes.append(replace(volume, kind=kind))
        if note:
            notes.append(f"{volume.name}: {note}")
    return replace(disk, volumes=tuple(volumes), notes=tuple(notes))


def _sensible(
    volumes: Iterable[Volume], size_bytes: int, first: int = 0
) -> tuple[list[Volume], list[str]]:
    """Those that lie within `first..size_bytes` and overlap none; a note about each other one."""
    good, notes = [], []
    for volume in volumes:
        if volume.length <= 0:
            notes.append(f"{volume.name}: ends before it starts")
        elif volume.offset < first or volume.end > size_bytes:
            notes.append(f"{volume.name}: bytes {volume.offset} to {volume.end} are out of place")
        else:
            good.append(volume)
    good.sort(key=lambda volume: volume.offset)
    overlapping: set[str] = set()
    reached, owner = 0, ""
    for volume in good:
        if volume.offset < reached:
            overlapping |= {volume.name, owner}
        if volume.end > reached:
            reached, owner = volume.end, volume.name
    notes += [f"{name}: overlaps another" for name in sorted(overlapping)]
    return [volume for volume in good if volume.name not in overlapping], notes


# -- MBR --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """An entry of an MBR or extended boot record, in sectors."""

    index: int
    type: int
    start: int
    count: int

    def volume(self, name: str, base: int) -> Volume:
        return Volume((base + self.start) * _SECTOR, self.count * _SECTOR, name)


def _mbr_entries(raw: bytes) -> list[_Entry]:
    """The entries in use of a boot record; none if it isn't one."""
    if raw[510:512] != b"\x55\xaa":
        return []
    entries = []
    for index in range(4):
        status, kind, start, count = struct.unpack_from("<B3xB3xII", raw, 446 + 16 * index)
        if status not in (0, 0x80):
            return []
        if kind:
            entries.append(_Entry(index, kind, start, count))
    return entries


def _mbr(entries: list[_Entry], size_bytes: int) -> Rounds[Disk]:
    names = {entry.index: f"partition {entry.index + 1}" for entry in entries}
    found = [entry.volume(names[entry.index], 0) for entry in entries]
    volumes, notes = _sensible(found, size_bytes, first=_SECTOR)
    extended = [names[entry.index] for entry in entries if entry.type in _EXTENDED]
    for name in extended[1:]:
        notes.append(f"{name}: a second extended partition")
    for container in [volume for volume in volumes if volume.name in extended]:
        volumes.remove(container)
        if container.name == extended[0]:
            logical, more = yield from _logical(container, size_bytes)
            volumes += logical
            notes += more
    volumes.sort(key=lambda volume: volume.offset)
    return (yield from _probe(Disk("MBR", tuple(volumes), tuple(notes)), size_bytes))


def _logical(container: Volume, size_bytes: int) -> Rounds[tuple[list[Volume], list[str]]]:
    """Follow the chain of boot records within an extended partition."""
    found: list[Volume] = []
    notes: list[str] = []
    base = container.offset // _SECTOR
    at, seen = base, set[int]()
    while True:
        seen.add(at)
        raw = yield from ask_one(at * _SECTOR, 512, size_bytes)
        entries = _mbr_entries(raw)
        for entry in entries[:2]:
            if entry.type not in _EXTENDED:
                found.append(entry.volume(f"partition {5 + len(found)}", at))
        links = [base + entry.start for entry in entries[:2] if entry.type in _EXTENDED]
        if not links:
            break
        at = links[0]
        if at in seen or len(seen) >= _MAX_LOGICAL:
            notes.append(f"{container.name}: its chain of logical partitions runs in a circle")
            break
        if not container.offset <= at * _SECTOR <= container.end - 512:
            notes.append(f"{container.name}: its chain of logical partitions leaves it")
            break
    records = [Volume(record * _SECTOR, _SECTOR, f"boot record {record}") for record in seen]
    good, more = _sensible([*found, *records], container.end, first=container.offset)
    return [volume for volume in good if volume.name.startswith("partition")], notes + more


# -- GPT --------------------------------------------------------------------------------------


def _gpt(head: bytes, size_bytes: int) -> Rounds[Disk]:
    """The table at the disk's start, or else the copy at its end."""
    problems: list[str] = []
    for place, sector in [(place, sector) for place in ("first", "second") for sector in _SECTORS]:
        lba = 1 if place == "first" else size_bytes // sector - 1
        try:
            disk = yield from _gpt_at(lba, sector, head, size_bytes)
        except Doubt as doubt:
            problems.append(f"{place} GPT, sectors of {sector}: {doubt}")
            continue
        used = ("the first GPT is damaged, the second is used",) if place == "second" else ()
        return (yield from _probe(replace(disk, notes=used + disk.notes), size_bytes))
    raise Doubt("a protective MBR, but no GPT to believe: " + "; ".join(problems))


def _gpt_at(lba: int, sector: int, head: bytes, size_bytes: int) -> Rounds[Disk]:
    """The table whose header is sector `lba`; raises `Doubt`. `head` is the disk's start."""
    raw = yield from _read(head, lba * sector, sector, size_bytes)
    if raw[:8] != b"EFI PART":
        raise Doubt("no header")
    header_bytes, checksum = struct.unpack_from("<II", raw, 12)
    own_lba, _, first_usable, last_usable = struct.unpack_from("<QQQQ", raw, 24)
    entries_lba, count, entry_bytes, entries_checksum = struct.unpack_from("<QIII", raw, 72)
    if not 92 <= header_bytes <= sector:
        raise Doubt(f"header of {header_bytes} bytes")
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:header_bytes]) != checksum:
        raise Doubt("wrong checksum of the header")
    if own_lba != lba:
        raise Doubt(f"header for sector {own_lba} at sector {lba}")
    if entry_bytes < 128 or entry_bytes % 8 or not 0 < count * entry_bytes <= _MAX_ENTRIES_BYTES:
        raise Doubt(f"{count} entries of {entry_bytes} bytes")
    table = yield from _read(head, entries_lba * sector, count * entry_bytes, size_bytes)
    if zlib.crc32(table) != entries_checksum:
        raise Doubt("wrong checksum of the entries")
    found = []
    for index in range(count):
        entry = table[index * entry_bytes : (index + 1) * entry_bytes]
        if any(entry[:16]):
            first, last = struct.unpack_from("<QQ", entry, 32)
            length = (last + 1 - first) * sector
            found.append(Volume(first * sector, length, f"partition {index + 1}"))
    end = min(size_bytes, (last_usable + 1) * sector)
    volumes, notes = _sensible(found, end, first=max(first_usable, 2) * sector)
    return Disk("GPT", tuple(volumes), tuple(notes))


def _read(head: bytes, offset: int, length: int, size_bytes: int) -> Rounds[bytes]:
    """Bytes of the disk, without a read if its start holds them."""
    if offset >= 0 and offset + length <= len(head):
        return head[offset : offset + length]
    return (yield from ask_one(offset, length, size_bytes))
