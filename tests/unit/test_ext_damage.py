"""Damaged ext file systems: never an exception, never a block in use called free."""

import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relocator.filesystem.ext_layout import parse
from relocator.filesystem.extfs import ExtFilesystem
from tests.support import ext_images as images
from tests.support.ext_images import change, logged, verdict

pytestmark = pytest.mark.skipif(bool(images.MISSING), reason=f"not installed: {images.MISSING}")


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


def assert_only_free(answer: ExtFilesystem, free: set[int], size_bytes: int) -> None:
    """What is not called in use is free."""
    for first, end in images.complement(list(answer.in_use()), size_bytes):
        assert free.issuperset(range(first // 1024, (end + 1023) // 1024)), answer.summary()


@pytest.mark.parametrize("name", DAMAGED)
@settings(max_examples=250, deadline=None)
@given(damage=damages)
def test_damage_never_makes_a_block_free(
    name: str, folder: Path, files: Path, damage: Damage
) -> None:
    raw, free, places = damage_case(name, folder, files)
    image = damaged(raw, places, damage)
    answer = verdict(image)
    if isinstance(answer, str):
        assert answer
        return
    assert_only_free(answer, free, len(image))


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
    answer = verdict(image)
    if isinstance(answer, str) or answer.caveat or case == 0:
        return
    assert_only_free(answer, free, len(image))


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=0, max_size=3000), st.integers(0, 3000))
def test_noise_is_a_reason(noise: bytes, at: int) -> None:
    """Also with the magic number in place."""
    image = bytearray(bytes(at) + noise + bytes(8192))
    image[1080:1082] = b"\x53\xef"
    answer = verdict(image)
    assert isinstance(answer, str)
