"""What ext file systems say is in use, against dumpe2fs, e2fsck and debugfs; and damaged ones."""

import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relocator import extfs
from relocator.bitmap import Bitmap
from relocator.ext_layout import parse
from relocator.extfs import ExtFilesystem
from relocator.geometry import Extent
from relocator.rounds import ROUND_BYTES, Reason
from tests.support import ext_images as images

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("mke2fs", "dumpe2fs", "debugfs", "e2fsck"))),
    reason="e2fsprogs is not installed",
)

MATRIX = """
16M  -t ext2 -b 1024
16M  -t ext2 -r 0
20M  -t ext2 -b 1024 -O ^sparse_super,^resize_inode
16M  -t ext3 -b 1024
32M  -t ext3 -b 2048
200M -t ext3 -b 4096
16M  -t ext4 -b 1024
64M  -t ext4 -b 2048
300M -t ext4 -b 4096
600M -t ext4 -b 65536
64M  -t ext4 -b 1024 -O ^64bit
64M  -t ext4 -b 1024 -O ^flex_bg
64M  -t ext4 -b 1024 -O ^has_journal
64M  -t ext4 -b 1024 -O meta_bg,^resize_inode
64M  -t ext4 -b 1024 -O meta_bg,^resize_inode,^flex_bg -g 256
64M  -t ext4 -b 1024 -O meta_bg,^resize_inode,^64bit,uninit_bg,^metadata_csum
64M  -t ext4 -b 1024 -O ^metadata_csum,uninit_bg
64M  -t ext4 -b 1024 -O ^metadata_csum,uninit_bg,^64bit,^flex_bg
64M  -t ext4 -b 1024 -O ^metadata_csum
64M  -t ext4 -b 1024 -O sparse_super2
64M  -t ext4 -b 1024 -O sparse_super2,^resize_inode,^flex_bg
64M  -t ext4 -b 4096 -O bigalloc -C 16384
64M  -t ext4 -b 1024 -O bigalloc -C 16384
64M  -t ext4 -b 1024 -O bigalloc -C 4096 -g 8192
64M  -t ext4 -b 1024 -O bigalloc,^metadata_csum,uninit_bg -C 8192 -g 8192
64M  -t ext4 -b 1024 -g 256
64M  -t ext4 -b 4096 -g 1024
33333k -t ext4 -b 1024
33335k -t ext4 -b 1024 -O bigalloc,^resize_inode -C 4096 -N 512
34M  -t ext4 -b 4096 -g 8192
34M  -t ext4 -b 1024 -N 64
34M  -t ext4 -b 4096 -N 50000
64M  -t ext4 -b 1024 -O quota,project,mmp
64M  -t ext4 -b 1024 -E packed_meta_blocks=1
64M  -t ext4 -b 1024 -E lazy_itable_init=0 -I 512
64M  -t ext4 -b 1024 -O metadata_csum_seed,orphan_file,inline_data,casefold,encrypt,verity
64M  -t ext4 -b 1024 -O fast_commit,ea_inode,large_dir
"""
CASES = [line.split() for line in MATRIX.strip().splitlines()]

Read = Callable[[int, int], bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def reader(path: Path, log: list[Extent] | None = None) -> Read:
    def read(offset: int, length: int) -> bytes:
        if log is not None:
            log.append(Extent(offset, length))
        with path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    return read


def examine(path: Path, log: list[Extent] | None = None) -> ExtFilesystem:
    answer = extfs.examine(reader(path, log), path.stat().st_size)
    assert isinstance(answer, ExtFilesystem), answer
    return answer


def expected(path: Path) -> images.Ranges:
    return images.complement(images.free_ranges(path), path.stat().st_size)


def assert_exact(path: Path) -> ExtFilesystem:
    """The image is believed wholly and in use is what dumpe2fs does not call free."""
    answer = examine(path)
    assert list(answer.in_use()) == expected(path)
    assert answer.in_use_bytes == sum(end - first for first, end in answer.in_use())
    assert answer.doubts == {} and answer.caveat == ""
    return answer


def change(path: Path, *requests: str, copy: str = "changed.img") -> Path:
    """A copy of an image after some debugfs requests."""
    changed, script = path.with_name(copy), path.with_name("requests")
    shutil.copyfile(path, changed)
    script.write_text("\n".join(requests) + "\n")
    images.run("debugfs", "-w", "-f", script, changed)
    return changed


# -- the truth --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_in_use_is_what_dumpe2fs_does_not_call_free(
    case: list[str], folder: Path, files: Path
) -> None:
    image = images.make(folder / "matrix.img", case[0], case[1:], files)
    answer = assert_exact(image)
    assert answer.kind == (case[case.index("-t") + 1] if "-t" in case else "ext2")
    image.unlink()


@pytest.mark.parametrize("options", ["-t ext3 -b 1024", "-t ext4 -b 1024", "-t ext4 -b 4096"])
def test_file_systems_with_a_history(options: str, folder: Path, files: Path) -> None:
    image = images.make(folder / "history.img", "24M", options.split(), files)
    removed = [f"rm file{number}" for number in range(1, 40, 3)]
    image = change(image, *removed, f"write {files}/deep/large again", copy="history2.img")
    assert_exact(image)
    for size in ("61M", "40M"):
        images.run("e2fsck", "-fy", image)
        images.run("resize2fs", image, size)
        os.truncate(image, 61 << 20)
        assert_exact(image)
    if "ext4" in options:
        images.run("tune2fs", "-O", "^metadata_csum", image)
        assert_exact(image)
        images.run("tune2fs", "-O", "uninit_bg", image)
        assert_exact(image)


def test_descriptors_may_say_that_their_tables_were_zeroed(folder: Path) -> None:
    """mke2fs sets that flag, without checksums too, on storage that it could discard."""
    image = images.make(folder / "again.img", "16M", ["-t", "ext3"], None)
    images.run("mke2fs", "-q", "-F", "-t", "ext3", image)
    assert image.read_bytes()[2048 + 18] == 4
    assert_exact(image)


def test_groups_tile_the_file_system_and_the_tail_is_in_use(folder: Path, files: Path) -> None:
    image = images.make(folder / "tail.img", "33333k", ["-t", "ext4", "-b", "1024"], files)
    os.truncate(image, 40 << 20)
    answer = assert_exact(image)
    ranges = [answer.group_range(group) for group in range(answer.group_count)]
    assert ranges[0][0] == 0 and ranges[-1][1] == answer.size_bytes
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    for group, (first, end) in enumerate(ranges):
        inside = list(answer.group_in_use(group))
        assert all(first <= low < high <= end for low, high in inside)
        assert all(a[1] < b[0] for a, b in pairwise(inside))
    assert list(answer.in_use())[-1][1] == 40 << 20


@pytest.mark.parametrize("volume_offset", [0, 1 << 20, 1536])
def test_a_block_of_the_disk_that_is_in_use_in_part_is_in_use(
    volume_offset: int, folder: Path, files: Path
) -> None:
    image = images.make(folder / "into.img", "16M", ["-t", "ext4", "-b", "1024"], files)
    answer = examine(image)
    blocks = -(-(volume_offset + (16 << 20)) // 4096)
    bitmap = Bitmap(blocks)
    answer.in_use_into(bitmap, 4096, volume_offset)
    touched = set()
    for first, end in answer.in_use():
        touched |= set(range((first + volume_offset) // 4096, (end + volume_offset + 4095) // 4096))
    assert {block for block in range(blocks) if bitmap[block]} == touched


@pytest.mark.parametrize(
    "options",
    ["-t ext3 -b 1024", "-t ext4 -b 1024", "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg"],
)
def test_a_copy_of_what_is_in_use_is_a_whole_file_system(
    options: str, folder: Path, files: Path
) -> None:
    """Also without the inode tables' ends that were never used."""
    image = images.make(folder / "whole.img", "64M", options.split(), files)
    answer = examine(image)
    copy = folder / "copy.img"
    with copy.open("wb") as file:
        file.truncate(64 << 20)
        for first, end in answer.in_use(idle_tables=False):
            file.seek(first)
            file.write(reader(image)(first, end - first))
    images.run("e2fsck", "-fn", copy)
    out = folder / "out"
    images.run("debugfs", "-R", f"dump deep/large {out}", copy)
    assert out.read_bytes() == (files / "deep" / "large").read_bytes()
    idle_bytes = sum(end - first for first, end in answer.idle_tables)
    assert (idle_bytes > 0) == ("ext4" in options)
    kept_bytes = sum(end - first for first, end in answer.in_use(idle_tables=False))
    assert kept_bytes == answer.in_use_bytes - idle_bytes


def test_few_reads_and_small_rounds(folder: Path) -> None:
    """16 GiB: superblock with descriptors, then the bitmaps of each flexible group in one."""
    image = images.make(folder / "large.img", "16G", ["-t", "ext4"], None)
    log: list[Extent] = []
    answer = examine(image, log)
    image.unlink()
    assert answer.group_count == 128
    assert len(log) <= 1 + 128 // 16
    assert sum(extent.length for extent in log) <= (64 << 10) + 128 * 4096


def test_rounds_are_bounded_and_independent_reads_come_together(folder: Path) -> None:
    """Without flexible groups each bitmap is elsewhere: many extents, but few rounds."""
    options = ["-t", "ext4", "-b", "1024", "-O", "^flex_bg,^metadata_csum,^uninit_bg", "-g", "1024"]
    image = images.make(folder / "rounds.img", "256M", options, None)
    read, size_bytes = reader(image), image.stat().st_size
    asked, rounds = [], extfs.survey(size_bytes)
    wanted = next(rounds)
    with pytest.raises(StopIteration) as stop:
        while True:
            asked.append(wanted)
            wanted = rounds.send([read(*extent) for extent in wanted])
    assert isinstance(stop.value.value, ExtFilesystem) and stop.value.value.doubts == {}
    assert len(asked) <= 3 and len(asked[-1]) == 256
    assert all(sum(extent.length for extent in wanted) <= ROUND_BYTES for wanted in asked)


# -- the journal ------------------------------------------------------------------------------


def changed_metadata(old: Path, new: Path) -> list[int]:
    """The descriptors and bitmaps in which two images differ, by block number."""
    before, after = old.read_bytes(), new.read_bytes()
    text = images.run("dumpe2fs", new)
    size = int(re.findall(r"^Block size: +(\d+)$", text, re.MULTILINE)[0])
    places = re.findall(
        r"(?:(?:Block|Inode) bitmap at|Group descriptors at) (\d+)(?:-(\d+))?", text
    )
    blocks = {n for low, high in places for n in range(int(low), int(high or low) + 1)}
    return [n for n in sorted(blocks) if before[n * size :][:size] != after[n * size :][:size]]


def logged(old: Path, new: Path, version: str) -> Path:
    """`old` with what makes it `new` in its journal only."""
    size = parse(old.read_bytes()[1024:2048], old.stat().st_size).block_bytes
    blocks, data = changed_metadata(old, new), old.with_name("blocks")
    raw = new.read_bytes()
    data.write_bytes(b"".join(raw[n * size :][:size] for n in blocks))
    numbers = ",".join(map(str, blocks))
    return change(old, f"jo {version}", f"jw -b {numbers} {data}", "jc", copy="logged.img")


JOURNALS = [
    ("-t ext3 -b 1024", ""),
    ("-t ext4 -b 4096 -O ^metadata_csum", ""),
    ("-t ext4 -b 1024 -O ^metadata_csum,uninit_bg", ""),
    ("-t ext4 -b 1024", "-c -v 3"),
    ("-t ext4 -b 1024", "-c -v 2"),
    ("-t ext4 -b 1024 -O ^64bit", "-c -v 3"),
    ("-t ext4 -b 1024 -O ^64bit,^flex_bg", "-c -v 2"),
    ("-t ext4 -b 1024 -O bigalloc -C 4096", "-c -v 3"),
]


@pytest.fixture(params=JOURNALS, ids=" ".join)
def versions(request: pytest.FixtureRequest, folder: Path, files: Path) -> tuple[Path, Path, str]:
    """An image, the same with one more file, and how to open its journal."""
    options, version = request.param
    old = images.make(folder / "old.img", "32M", options.split(), files)
    return old, change(old, f"write {files}/deep/large more", copy="new.img"), version


def test_bitmaps_that_are_in_the_journal_only_are_found(versions: tuple[Path, Path, str]) -> None:
    old, new, version = versions
    assert expected(old) != expected(new)
    image = logged(old, new, version)
    answer = examine(image)
    assert list(answer.in_use()) == expected(new)
    assert answer.mounted and answer.caveat == "" and answer.doubts == {}
    images.run("debugfs", "-w", "-R", "jr", image)
    assert list(answer.in_use()) == expected(image)


def test_groups_of_an_uncommitted_transaction_are_wholly_in_use(
    versions: tuple[Path, Path, str],
) -> None:
    old, new, version = versions
    image = logged(old, new, version)
    raw = image.read_bytes()
    commit = raw.index(b"\xc0\x3b\x39\x98\0\0\0\2")
    image.write_bytes(raw[:commit] + bytes(1024) + raw[commit + 1024 :])
    answer, before, after = examine(image), examine(old), examine(new)
    for group in range(answer.group_count):
        changed = list(before.group_in_use(group)) != list(after.group_in_use(group))
        assert (group in answer.doubts) == changed
        whole = [answer.group_range(group)]
        assert list(answer.group_in_use(group)) == (
            whole if changed else list(before.group_in_use(group))
        )
    assert answer.mounted and answer.doubts and answer.caveat == ""
    assert all("not committed" in reason for reason in answer.doubts.values())


def test_a_journal_that_cannot_be_walked_is_a_caveat(folder: Path, files: Path) -> None:
    old = images.make(folder / "old.img", "32M", ["-t", "ext4", "-b", "1024"], files)
    new = change(old, f"write {files}/deep/large more", copy="new.img")
    image = logged(old, new, "-c -v 3")
    where = re.findall(r"\(0-\d+\):(\d+)", images.run("debugfs", "-R", "stat <8>", image))[0]
    with image.open("r+b") as file:
        for offset, caveat in ((1024 + 100, "descriptor"), (1024, "not where"), (100, "superb")):
            file.seek(int(where) * 1024 + offset)
            file.write(b"damage")
            file.flush()
            answer = examine(image)
            assert caveat in answer.caveat and answer.caveat in answer.summary()
            assert answer.idle_tables == []


def test_a_log_that_is_broken_off_is_a_caveat(folder: Path, files: Path) -> None:
    """Recovery would take the damaged second transaction for the end; the third tells."""
    old = images.make(folder / "old.img", "32M", ["-t", "ext4", "-b", "1024"], files)
    data = old.with_name("block")
    data.write_bytes(old.read_bytes()[2048:3072])
    image = change(old, "jo -c -v 3", *[f"jw -b 2 {data}"] * 3, "jc", copy="three.img")
    assert examine(image).caveat == ""
    raw = image.read_bytes()
    second = raw.index(b"\xc0\x3b\x39\x98\0\0\0\1\0\0\0\2")
    image.write_bytes(raw[:second] + b"damage" + raw[second + 6 :])
    assert "broken off" in examine(image).caveat


def superblock_patch(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(1024 + offset)
        file.write(data)
    return path


def test_a_mounted_file_system_without_a_journal_is_a_caveat(folder: Path, files: Path) -> None:
    image = images.make(folder / "mounted.img", "8M", ["-t", "ext2"], files)
    answer = examine(superblock_patch(image, 0x3A, b"\0\0"))
    assert answer.mounted and "without a journal" in answer.caveat


# -- what is not believed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (0x38, b"\0\0", "no ext2"),
        (0x3A, b"\3\0", "errors"),
        (0x4C, b"\2", "revision"),
        (0x60, b"\3", "unknown incompatible features 0x1"),
        (0x60, b"\x0a", "external journal"),
        (0x65, b"\x08", "unknown read-only features 0x800"),
        (0x175, b"\1", "checksum type"),
        (0x18, b"\7", "block size"),
        (0x04, b"\xff\xff\xff", "blocks of 1024"),
        (0x14, b"\0", "first block"),
        (0x20, b"\0\x10", "groups of"),
        (0x28, b"\0\0", "inodes"),
        (0x58, b"\x81", "inodes of"),
        (0x5A, b"\1", "group 1"),
    ],
)
def test_a_superblock_that_makes_no_sense_is_a_reason(
    offset: int, data: bytes, reason: str, folder: Path
) -> None:
    image = images.make(folder / "odd.img", "8M", ["-t", "ext2", "-b", "1024"], None)
    answer = extfs.examine(reader(superblock_patch(image, offset, data)), 8 << 20)
    assert isinstance(answer, Reason) and reason in str(answer)


@pytest.mark.parametrize("length", [0, 1, 1024, 2047, 2048, 4096])
def test_a_volume_too_small_is_a_reason(length: int) -> None:
    assert isinstance(extfs.examine(lambda _, wanted: bytes(wanted), length), Reason)


def test_a_short_read_is_a_reason(folder: Path) -> None:
    image = images.make(folder / "short.img", "8M", ["-t", "ext4"], None)
    read = reader(image)
    for served_bytes in (0, 1500, 65536):
        answer = extfs.examine(
            lambda at, n, most=served_bytes: read(at, max(0, min(n, most - at))), 8 << 20
        )
        assert isinstance(answer, Reason) and "could be read" in str(answer)


def test_errors_of_the_read_function_pass_through() -> None:
    def read(_offset: int, _length: int) -> bytes:
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        extfs.examine(read, 1 << 20)


def test_a_group_whose_count_disagrees_is_wholly_in_use(folder: Path, files: Path) -> None:
    image = images.make(folder / "count.img", "32M", ["-t", "ext3", "-b", "1024"], files)
    before = examine(image)
    with image.open("r+b") as file:
        file.seek(2048 + 32 + 12)
        file.write(b"\7\7")
    answer = examine(image)
    assert list(answer.doubts) == [1] and "free in the bitmap" in answer.doubts[1]
    assert list(answer.group_in_use(1)) == [answer.group_range(1)]
    assert list(answer.group_in_use(2)) == list(before.group_in_use(2))
    assert answer.in_use_bytes == sum(end - first for first, end in answer.in_use())
    assert "group 1: " in answer.summary()


# -- damage -----------------------------------------------------------------------------------

DAMAGED = {
    "checksums": "-t ext4 -b 1024 -g 1024",
    "checksums, narrow": "-t ext4 -b 1024 -O ^64bit,^flex_bg -g 1024",
    "checksums, bigalloc": "-t ext4 -b 1024 -O bigalloc -C 4096 -g 8192",
    "descriptor checksums": "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg -g 1024",
    "ext3": "-t ext3 -b 1024 -g 1024",
    "no journal": "-t ext2 -b 2048 -g 2048",
}


@cache
def damage_case(name: str, folder: Path, files: Path) -> tuple[bytes, set[int], list[int]]:
    """An image, its free blocks of 1 KiB, and offsets worth damaging.

    Without a checksum of theirs the bitmaps are left alone: such damage can't always be seen.
    """
    image = images.make(folder / f"{name}.img", "12M", DAMAGED[name].split(), files)
    raw = image.read_bytes()
    free = {
        block
        for first, end in images.free_ranges(image)
        for block in range(first // 1024, end // 1024)
    }
    layout = parse(raw[1024:2048], len(raw))
    places = list(range(1024, 2048))
    table_at = layout.descriptor_block(0) * layout.block_bytes
    size = layout.descriptor_bytes
    table_end = table_at + layout.group_count * size
    places += [*range(table_at, table_end)] * 2
    if name.startswith("checksums"):
        for at in range(table_at, table_end, size):
            bitmap = layout.group(raw[at : at + size]).block_bitmap * layout.block_bytes
            places += range(bitmap, bitmap + layout.clusters_per_group // 8)
    return raw, free, places


Damage = list[tuple[str, float, int, bytes]]
damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "zero", "write", "end"]),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from([1, 2, 4, 32, 512, 1024, 4096]),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def damaged(raw: bytes, places: list[int], damage: Damage) -> bytes:
    result = bytearray(raw)
    kept = set(places)
    for what, where, length, data in damage:
        at = places[int(where * len(places))]
        if what == "flip":
            if at < len(result):
                result[at] ^= 1 << data[0] % 8
        elif what == "end":
            del result[max(4096, at * 1000) :]
        else:
            for step, byte in enumerate(bytes(length) if what == "zero" else data):
                if at + step in kept and at + step < len(result):
                    result[at + step] = byte
    return bytes(result)


@pytest.mark.parametrize("name", DAMAGED)
@settings(max_examples=250, deadline=None)
@given(damage=damages)
def test_damage_never_makes_a_block_free(
    name: str, folder: Path, files: Path, damage: Damage
) -> None:
    raw, free, places = damage_case(name, folder, files)
    image = damaged(raw, places, damage)
    answer = extfs.examine(lambda offset, length: image[offset : offset + length], len(image))
    if isinstance(answer, Reason):
        assert str(answer)
        return
    for first, end in images.complement(list(answer.in_use()), len(image)):
        assert free.issuperset(range(first // 1024, (end + 1023) // 1024)), answer.summary()


@cache
def logged_case(case: int, folder: Path, files: Path) -> tuple[bytes, set[int], list[int]]:
    """An image with its newest bitmaps in the journal, what they call free, inode and log."""
    options, version = [("-t ext3 -b 1024", ""), ("-t ext4 -b 1024", "-c -v 3")][case]
    old = images.make(folder / "old.img", "8M", options.split(), files)
    new = change(old, f"write {files}/deep/large more", copy="new.img")
    image = logged(old, new, version)
    raw = image.read_bytes()
    layout = parse(raw[1024:2048], len(raw))
    table = layout.group(raw[2048:][: layout.descriptor_bytes]).inode_table * 1024
    stat = images.run("debugfs", "-R", "stat <8>", image)
    starts = [int(block) * 1024 for block in re.findall(r"\((?:0-\d+|IND|DIND)\):(\d+)", stat)]
    inode = range(table + 7 * layout.inode_bytes, table + 8 * layout.inode_bytes)
    logs = [at for start in starts[:3] for at in range(start, start + 8192)]
    free = {
        block
        for first, end in images.free_ranges(new)
        for block in range(first // 1024, end // 1024)
    }
    return raw, free, [*inode] * 32 + logs


@pytest.mark.parametrize("case", [0, 1], ids=["ext3", "checksums"])
@settings(max_examples=200, deadline=None)
@given(damage=damages)
def test_a_damaged_journal_never_raises_nor_lies_under_checksums(
    case: int, folder: Path, files: Path, damage: Damage
) -> None:
    raw, free, places = logged_case(case, folder, files)
    image = damaged(raw, places, damage)
    answer = extfs.examine(lambda offset, length: image[offset : offset + length], len(image))
    if isinstance(answer, Reason) or answer.caveat or case == 0:
        return
    for first, end in images.complement(list(answer.in_use()), len(image)):
        assert free.issuperset(range(first // 1024, (end + 1023) // 1024)), answer.summary()


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=0, max_size=3000), st.integers(0, 3000))
def test_noise_is_a_reason(noise: bytes, at: int) -> None:
    """Also with the magic number in place."""
    image = bytearray(bytes(at) + noise + bytes(8192))
    image[1080:1082] = b"\x53\xef"
    answer = extfs.examine(
        lambda offset, length: bytes(image[offset : offset + length]), len(image)
    )
    assert isinstance(answer, Reason)
