"""Whole disks, tables and ext file systems together, damaged: no block in use is ever called free.

tests/unit has each of them alone. Both file systems here have checksums: without them, damage to a
bitmap can't always be seen.
"""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relocator.filesystem import inuse
from relocator.filesystem.ext_layout import parse
from relocator.store.geometry import Geometry
from tests.support import ext_images as images
from tests.unit.test_partitions import boot_record, gpt

pytestmark = pytest.mark.skipif(bool(images.MISSING), reason=f"not installed: {images.MISSING}")

MIB = 1 << 20
SIZE_BYTES = 20 * MIB
STARTS = (MIB, 10 * MIB)
LENGTH = 8 * MIB
KINDS = ("GPT", "MBR", "logical", "none")
OPTIONS = ("-t ext4 -b 1024 -g 1024", "-t ext4 -b 4096 -O ^64bit")


@dataclass(frozen=True)
class Case:
    """A disk, which of its bytes are free, and where damage is worth while."""

    content: bytes
    free: list[tuple[int, int]]
    places: list[int]


def sectors(start: int) -> tuple[int, int]:
    return start // 512, LENGTH // 512


def table(kind: str) -> dict[int, bytes]:
    """The disk's partition table: what is written where."""
    first, second = map(sectors, STARTS)
    if kind == "GPT":
        parts = [(at, at + count - 1) for at, count in (first, second)]
        return gpt(*parts, size_bytes=SIZE_BYTES).pieces
    if kind == "MBR":
        return {0: boot_record((0x83, *first), (0x83, *second))}
    if kind == "logical":
        at = second[0] - 64
        extended = (0x05, at, second[1] + 64)
        return {
            0: boot_record((0x83, *first), extended),
            at * 512: boot_record((0x83, 64, second[1])),
        }
    return {}


@cache
def case(kind: str) -> Case:
    with tempfile.TemporaryDirectory(prefix="relocator-fuzz-") as name:
        folder = Path(name)
        content, free, places = bytearray(SIZE_BYTES), [], []
        for number, (start, options) in enumerate(zip(STARTS, OPTIONS, strict=True)):
            if kind == "none" and number:
                break
            at = 0 if kind == "none" else start
            files = images.tree(folder / "files")
            image = images.make(folder / "image", "8M", options.split(), files)
            raw = image.read_bytes()
            content[at : at + len(raw)] = raw
            free += [(at + first, at + end) for first, end in images.free_ranges(image)]
            layout = parse(raw[1024:2048], len(raw))
            tables = layout.descriptor_block(0) * layout.block_bytes
            here = [*range(1024, 2048), *range(tables, tables + 512)]
            for group in range(layout.group_count):
                entry = tables + group * layout.descriptor_bytes
                found = layout.group(raw[entry : entry + layout.descriptor_bytes])
                bitmap = found.block_bitmap * layout.block_bytes
                here += range(bitmap, bitmap + 128)
            places += [at + one for one in here]
    for at, data in table(kind).items():
        content[at : at + len(data)] = data
        places += [*range(at, at + min(len(data), 512))] * 4
    return Case(bytes(content), free, places)


Damage = list[tuple[float, bytes]]
damages = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8) | st.just(bytes(512)) | st.just(b"\xff" * 512),
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(KINDS), damages, st.sampled_from([512, 4096, 65536]))
@example("GPT", [], 4096)
@example("MBR", [], 4096)
@example("logical", [], 4096)
@example("none", [], 4096)
def test_disk(kind: str, damage: Damage, block_bytes: int) -> None:
    of = case(kind)
    patches = [(of.places[int(where * len(of.places))], data) for where, data in damage]

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0 and length > 0 and offset + length <= SIZE_BYTES
        found = bytearray(of.content[offset : offset + length])
        for at, data in patches:
            start, end = max(at, offset), min(at + len(data), offset + length)
            if start < end:
                found[start - offset : end - offset] = data[start - at : end - at]
        return bytes(found)

    geometry = Geometry(SIZE_BYTES, block_bytes)
    found = images.settle(inuse.survey(geometry), read)
    assert damage or found.free_blocks * block_bytes > MIB
    if found.blocks is None:
        return
    for first, end in found.blocks.clear_runs(0, geometry.total_blocks):
        start, length = geometry.extent(first, end)
        assert any(low <= start and start + length <= high for low, high in of.free), found.notes
