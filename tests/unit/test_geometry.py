"""Splitting requests, against the definition byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relocator.store.geometry import MOST_BLOCKS, Geometry, suited_block_bytes

sizes = st.integers(1, 9000)


@given(sizes, st.data())
def test_a_split_says_of_every_block_whether_it_is_covered(size: int, data: st.DataObject) -> None:
    geometry = Geometry(size, 512)
    offset = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(0, size - offset))
    edges, first, end = geometry.split(offset, length)
    for block in range(geometry.total_blocks):
        bytes_of_block = range(block * 512, min((block + 1) * 512, size))
        covered = sum(offset <= at < offset + length for at in bytes_of_block)
        if covered == len(bytes_of_block):
            assert first <= block < end
        else:
            assert (block in edges) == (covered > 0)
            assert not first <= block < end
    touched_first, touched_end = geometry.touched(offset, length)
    assert set(edges) | set(range(first, end)) == set(range(touched_first, touched_end))


@given(sizes)
def test_extents_of_all_blocks_cover_the_disk(size: int) -> None:
    geometry = Geometry(size, 512)
    assert geometry.extent(0, geometry.total_blocks) == (0, size)
    at = 0
    for block in range(geometry.total_blocks):
        extent = geometry.extent(block, block + 1)
        assert extent.offset == at
        at += extent.length
    assert at == size


@pytest.mark.parametrize("block_bytes", [0, 511, 3000, 1 << 21, -512])
def test_a_block_size_that_is_no_power_of_two_in_range_is_refused(block_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"block_bytes={block_bytes}: must be a power of two"):
        Geometry(1 << 20, block_bytes)


@pytest.mark.parametrize(
    ("size_bytes", "block_bytes"),
    [
        (0, 4096),
        (1 << 40, 4096),
        (2 << 40, 4096),
        ((2 << 40) + 1, 8192),
        (8 << 40, 16 << 10),
        (64 << 40, 128 << 10),
        (1 << 60, 1 << 20),
    ],
)
def test_a_large_disk_gets_larger_blocks_so_that_its_maps_stay_small(
    size_bytes: int, block_bytes: int
) -> None:
    assert suited_block_bytes(size_bytes) == block_bytes
    blocks = Geometry(size_bytes, block_bytes).total_blocks
    assert blocks <= MOST_BLOCKS or block_bytes == 1 << 20
    assert MOST_BLOCKS * 9 // 8 < 1 << 30  # three planes, live and twice durable: under 1 GiB
