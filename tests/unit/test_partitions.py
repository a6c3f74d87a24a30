"""Partition tables, built byte by byte: believed, half believed, and not believed."""

import struct
import zlib
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relocator.filesystem import partitions
from relocator.filesystem.partitions import SIGNATURES, Disk
from tests.support.ext_images import settle

MIB = 1 << 20
SIZE = 64 * MIB


@dataclass
class Image:
    """A sparse disk: what has been written, zeros elsewhere."""

    size_bytes: int = SIZE
    pieces: dict[int, bytes] = field(default_factory=dict)
    reads: int = 0

    def put(self, offset: int, data: bytes) -> None:
        self.pieces[offset] = data

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and length > 0 and offset + length <= self.size_bytes
        self.reads += 1
        result = bytearray(length)
        for at, data in self.pieces.items():
            for index, byte in enumerate(data, at - offset):
                if 0 <= index < length:
                    result[index] = byte
        return bytes(result)

    def find(self) -> Disk:
        disk = settle(partitions.survey(self.size_bytes), self.read)
        reached = 0
        for volume in disk.volumes:
            assert reached <= volume.offset < volume.end <= self.size_bytes
            reached = volume.end
        return disk


def boot_record(*entries: tuple[int, int, int]) -> bytes:
    """446 bytes of nothing, entries of (type, start, count), the mark."""
    table = b"".join(struct.pack("<B3xB3xII", 0, *entry) for entry in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def gpt_header(lba: int, other: int, entries_lba: int, entries: bytes, last_lba: int) -> bytes:
    def packed(checksum: int) -> bytes:
        head = struct.pack(
            "<8sIIIIQQQQ", b"EFI PART", 0x10000, 92, checksum, 0, lba, other, 34, last_lba - 34
        )
        tail = struct.pack("<QIII", entries_lba, 128, 128, zlib.crc32(entries))
        return head + b"disk-identifier!" + tail

    return packed(zlib.crc32(packed(0)))


def gpt(*parts: tuple[int, int], sector: int = 512, size_bytes: int = SIZE) -> Image:
    """A disk with partitions of (first, last) sector."""
    image, last = Image(size_bytes), size_bytes // sector - 1
    entries = b"".join(
        struct.pack("<16s16sQQ", b"a type", bytes([n]), *part).ljust(128, b"\0")
        for n, part in enumerate(parts)
    ).ljust(128 * 128, b"\0")
    image.put(0, boot_record((0xEE, 1, last)))
    copy = last - len(entries) // sector
    image.put(sector, gpt_header(1, last, 2, entries, last))
    image.put(2 * sector, entries)
    image.put(copy * sector, entries)
    image.put(last * sector, gpt_header(last, 1, copy, entries, last))
    return image


def ext(image: Image, offset: int) -> None:
    image.put(offset + 1080, b"\x53\xef")


def spans(disk: Disk) -> list[tuple[str, int, int]]:
    return [(volume.name, volume.offset, volume.length) for volume in disk.volumes]


# -- whole disk -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "offset", "magic"), SIGNATURES)
def test_a_whole_disk_is_one_volume_with_its_kind(kind: str, offset: int, magic: bytes) -> None:
    image = Image()
    image.put(offset, magic)
    disk = image.find()
    assert (disk.table, disk.notes) == ("none", ())
    assert spans(disk) == [("whole disk", 0, SIZE)] and disk.volumes[0].kind == kind
    assert image.reads == 1


@pytest.mark.parametrize("size_bytes", [0, 1, 511, 512, 1024, 4096])
def test_tiny_disks(size_bytes: int) -> None:
    disk = Image(size_bytes).find()
    assert disk.table == "none" and [volume.kind for volume in disk.volumes] in ([], ["unknown"])


def test_two_signatures_are_believed_neither() -> None:
    image = Image()
    ext(image, 0)
    image.put(0, b"LUKS\xba\xbe")
    disk = image.find()
    assert disk.volumes[0].kind == "unknown" and "ext and LUKS" in disk.notes[0]


def test_a_boot_sector_of_fat_is_no_table() -> None:
    image = Image()
    image.put(0, boot_record((0x83, 2048, 2048)))
    image.put(82, b"FAT32   ")
    assert [volume.kind for volume in image.find().volumes] == ["FAT"]


def test_boot_code_in_place_of_entries_is_no_table() -> None:
    image = Image()
    image.put(0, bytes(range(1, 255)) * 2 + b"\1\2\x55\xaa")
    ext(image, 0)
    disk = image.find()
    assert disk.table == "none" and disk.volumes[0].kind == "ext"


# -- MBR --------------------------------------------------------------------------------------


def test_primary_partitions() -> None:
    image = Image()
    image.put(0, boot_record((0x83, 2048, 4096), (0, 0, 0), (0x8E, 16384, 2048)))
    ext(image, MIB)
    image.put(8 * MIB + 512, b"LABELONE")
    disk = image.find()
    assert disk.table == "MBR" and disk.notes == ()
    assert spans(disk) == [("partition 1", MIB, 2 * MIB), ("partition 3", 8 * MIB, MIB)]
    assert [volume.kind for volume in disk.volumes] == ["ext", "LVM"]
    assert image.reads == 3


def chain(image: Image, *records: tuple[int, tuple[int, int, int], int]) -> None:
    """Boot records (sector, logical entry, next) of an extended partition at sector 4096."""
    image.put(0, boot_record((0x83, 2048, 2048), (0x05, 4096, 40960)))
    for at, entry, following in records:
        link = [(0x05, following - 4096, 2048)] if following else []
        image.put(at * 512, boot_record(entry, *link))


def test_logical_partitions() -> None:
    image = Image()
    chain(image, (4096, (0x83, 64, 1024), 8192), (8192, (0x82, 128, 512), 0))
    ext(image, (4096 + 64) * 512)
    disk = image.find()
    assert disk.notes == ()
    assert spans(disk) == [
        ("partition 1", MIB, MIB),
        ("partition 5", (4096 + 64) * 512, 1024 * 512),
        ("partition 6", (8192 + 128) * 512, 512 * 512),
    ]
    assert disk.volumes[1].kind == "ext"


@pytest.mark.parametrize(
    ("following", "note"), [(4096, "circle"), (100_000, "leaves"), (45056, "leaves")]
)
def test_a_chain_that_goes_astray_is_cut(following: int, note: str) -> None:
    image = Image()
    chain(image, (4096, (0x83, 64, 1024), 8192), (8192, (0x83, 64, 1024), following))
    disk = image.find()
    names = [volume.name for volume in disk.volumes]
    assert names == ["partition 1", "partition 5", "partition 6"] and note in disk.notes[0]


def test_a_long_chain_is_cut() -> None:
    image = Image(256 * MIB)
    image.put(0, boot_record((0x0F, 4096, 400_000)))
    for number in range(200):
        at = 4096 + 1024 * number
        image.put(at * 512, boot_record((0x83, 64, 512), (0x05, at + 1024 - 4096, 1024)))
    disk = image.find()
    assert len(disk.volumes) == 128 and "circle" in disk.notes[0]


def test_a_logical_partition_over_a_boot_record_is_left_out() -> None:
    image = Image()
    chain(image, (4096, (0x83, 64, 8192), 8192), (8192, (0x83, 64, 1024), 0))
    disk = image.find()
    assert "partition 5" not in [volume.name for volume in disk.volumes]
    assert any("partition 5: overlaps" in note for note in disk.notes)


@pytest.mark.parametrize(
    ("entry", "note"),
    [
        ((0x83, 4096, 1 << 31), "out of place"),
        ((0x83, 0, 2048), "out of place"),
        ((0x83, 8192, 0), "ends before"),
        ((0x83, 2049, 16), "overlaps"),
        ((0x05, 2049, 16), "overlaps"),
    ],
)
def test_entries_that_make_no_sense_are_left_out(entry: tuple[int, int, int], note: str) -> None:
    image = Image()
    image.put(0, boot_record((0x83, 2048, 2048), entry))
    ext(image, MIB)
    disk = image.find()
    assert spans(disk) == ([] if note == "overlaps" else [("partition 1", MIB, MIB)])
    assert any(note in text and "partition 2" in text for text in disk.notes)


def test_a_table_and_a_file_system_on_one_disk_are_believed_neither() -> None:
    image = Image()
    image.put(0, boot_record((0x83, 2048, 2048)))
    ext(image, 0)
    disk = image.find()
    assert disk.table == "unknown" and [volume.kind for volume in disk.volumes] == ["unknown"]
    assert "both a MBR table and a file system" in disk.notes[0]


# -- GPT --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sector", [512, 4096])
def test_gpt(sector: int) -> None:
    image = gpt((MIB // sector, 2 * MIB // sector - 1), (9000, 9999), sector=sector)
    ext(image, MIB)
    disk = image.find()
    assert (disk.table, disk.notes) == ("GPT", ())
    assert spans(disk) == [
        ("partition 1", MIB, MIB),
        ("partition 2", 9000 * sector, 1000 * sector),
    ]
    assert [volume.kind for volume in disk.volumes] == ["ext", "unknown"]
    assert image.reads == 3


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("offset", [0, 16, 24, 40, 72, 88])
def test_a_damaged_first_gpt_gives_way_to_the_second(sector: int, offset: int) -> None:
    image = gpt((MIB // sector, 2 * MIB // sector - 1), sector=sector)
    image.put(sector + offset, b"\xff")
    disk = image.find()
    assert spans(disk) == [("partition 1", MIB, MIB)]
    assert "first GPT" in disk.notes[0]


def test_damaged_entries_give_way_to_the_second_gpt() -> None:
    image = gpt((2048, 4095))
    image.put(1024 + 32, b"\xff")
    disk = image.find()
    assert spans(disk) == [("partition 1", MIB, MIB)] and "second" in disk.notes[0]


def test_two_damaged_gpts_are_not_believed() -> None:
    image = gpt((2048, 4095))
    image.put(512 + 20, b"\xff")
    image.put(SIZE - 512 + 20, b"\xff")
    disk = image.find()
    assert spans(disk) == [("whole disk", 0, SIZE)] and disk.volumes[0].kind == "unknown"
    assert "no GPT to believe" in disk.notes[0] and "checksum" in disk.notes[0]


def test_a_gpt_without_its_protective_mbr_is_not_believed() -> None:
    image = gpt((2048, 4095))
    del image.pieces[0]
    disk = image.find()
    assert disk.table == "unknown" and "protective" in disk.notes[0]


@pytest.mark.parametrize(
    ("part", "note"),
    [
        ((2000, 3000), "overlaps"),
        ((5000, 4000), "ends before"),
        ((5000, 1 << 40), "out of place"),
        ((2, 33), "out of place"),
    ],
)
def test_gpt_entries_that_make_no_sense_are_left_out(part: tuple[int, int], note: str) -> None:
    disk = gpt((2048, 4095), part).find()
    assert spans(disk) == ([] if note == "overlaps" else [("partition 1", MIB, MIB)])
    assert any(note in text and "partition 2" in text for text in disk.notes)


# -- damage -----------------------------------------------------------------------------------

TABLES = {
    "none": Image(),
    "MBR": Image(),
    "GPT": gpt((64, 127), (256, 511), size_bytes=MIB),
    "GPT of large sectors": gpt((64, 127), sector=4096, size_bytes=MIB),
}
chain(TABLES["MBR"], (4096, (0x83, 64, 1024), 8192), (8192, (0x83, 64, 1024), 0))


@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 446, 512, 1024, 4096, 8192, 4096 * 512, 8192 * 512, MIB - 512]),
            st.integers(0, 511),
            st.binary(min_size=1, max_size=16),
        ),
        max_size=6,
    )
)
def test_damage_never_raises(name: str, damage: list[tuple[int, int, bytes]]) -> None:
    """`Image` checks that reads, and volumes, stay on the disk, ascending and apart."""
    table = TABLES[name]
    image = Image(table.size_bytes, dict(table.pieces))
    for place, offset, data in damage:
        at = (place + offset) % (image.size_bytes - 16)
        image.pieces.pop(at, None)
        image.put(at, data)
    image.find()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([5, 15, 0x83]), st.integers(0, 4096), st.integers(0, 4096)),
        min_size=1,
        max_size=4,
    ),
    st.dictionaries(
        st.integers(0, 2048),
        st.tuples(
            st.tuples(st.sampled_from([5, 0x83]), st.integers(0, 2048), st.integers(0, 2048)),
            st.tuples(st.sampled_from([0, 5]), st.integers(0, 2048), st.integers(0, 2048)),
        ),
        max_size=8,
    ),
)
def test_any_chain_ends(
    entries: list[tuple[int, int, int]],
    records: dict[int, tuple[tuple[int, int, int], tuple[int, int, int]]],
) -> None:
    image = Image(MIB)
    for at, pair in records.items():
        if at * 512 < MIB:
            image.put(at * 512, boot_record(*pair))
    image.put(0, boot_record(*entries))
    image.find()
