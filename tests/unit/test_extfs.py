"""What ext file systems say is in use, against dumpe2fs and e2fsck; and what is not believed."""

import os
from itertools import pairwise
from pathlib import Path

import pytest

from relocator.filesystem import extfs
from relocator.filesystem.extfs import ExtFilesystem, group_range
from relocator.filesystem.rounds import ROUND_BYTES
from relocator.store.bitmap import Bitmap
from relocator.store.geometry import Extent
from tests.support import ext_images as images
from tests.support.ext_images import assert_exact, change, examine, reader, settle, verdict

pytestmark = pytest.mark.skipif(bool(images.MISSING), reason=f"not installed: {images.MISSING}")

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
    ranges = [group_range(answer.layout, group) for group in range(answer.layout.group_count)]
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
    image = images.make(folder / "whole.img", "64M", options.split(), files)
    answer = examine(image)
    copy = folder / "copy.img"
    with copy.open("wb") as file:
        file.truncate(64 << 20)
        for first, end in answer.in_use():
            file.seek(first)
            file.write(reader(image)(first, end - first))
    images.run("e2fsck", "-fn", copy)
    out = folder / "out"
    images.run("debugfs", "-R", f"dump deep/large {out}", copy)
    assert out.read_bytes() == (files / "deep" / "large").read_bytes()
    kept_bytes = sum(end - first for first, end in answer.in_use())
    assert kept_bytes == answer.in_use_bytes


def test_few_reads_and_small_rounds(folder: Path) -> None:
    """16 GiB: superblock with descriptors, then the bitmaps of each flexible group in one."""
    image = images.make(folder / "large.img", "16G", ["-t", "ext4"], None)
    log: list[Extent] = []
    answer = examine(image, log)
    image.unlink()
    assert answer.layout.group_count == 128
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


# -- what is not believed ---------------------------------------------------------------------


def superblock_patch(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(1024 + offset)
        file.write(data)
    return path


def test_a_mounted_file_system_without_a_journal_is_a_caveat(folder: Path, files: Path) -> None:
    image = images.make(folder / "mounted.img", "8M", ["-t", "ext2"], files)
    answer = examine(superblock_patch(image, 0x3A, b"\0\0"))
    assert answer.mounted and "without a journal" in answer.caveat


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
    answer = verdict(superblock_patch(image, offset, data).read_bytes())
    assert isinstance(answer, str) and reason in answer


@pytest.mark.parametrize("length", [0, 1, 1024, 2047, 2048, 4096])
def test_a_volume_too_small_is_a_reason(length: int) -> None:
    assert isinstance(verdict(bytes(length)), str)


def test_a_short_read_is_a_reason(folder: Path) -> None:
    image = images.make(folder / "short.img", "8M", ["-t", "ext4"], None)
    read = reader(image)
    for served_bytes in (0, 1500, 65536):
        answer = settle(
            extfs.survey(8 << 20),
            lambda at, n, most=served_bytes: read(at, max(0, min(n, most - at))),
        )
        assert isinstance(answer, str) and "could be read" in answer


def test_errors_of_the_read_function_pass_through() -> None:
    def read(_offset: int, _length: int) -> bytes:
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        settle(extfs.survey(1 << 20), read)


def test_a_group_whose_count_disagrees_is_wholly_in_use(folder: Path, files: Path) -> None:
    image = images.make(folder / "count.img", "32M", ["-t", "ext3", "-b", "1024"], files)
    before = examine(image)
    with image.open("r+b") as file:
        file.seek(2048 + 32 + 12)
        file.write(b"\7\7")
    answer = examine(image)
    assert list(answer.doubts) == [1] and "free in the bitmap" in answer.doubts[1]
    assert list(answer.group_in_use(1)) == [group_range(answer.layout, 1)]
    assert list(answer.group_in_use(2)) == list(before.group_in_use(2))
    assert answer.in_use_bytes == sum(end - first for first, end in answer.in_use())
    assert "group 1: " in answer.summary()
