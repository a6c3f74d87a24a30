"""A map on the wire: what is unpacked is what was packed, in whichever of its two forms."""

import random

import pytest

from relocator.errors import UpstreamError
from relocator.source.answer import Answer
from relocator.store import runs
from relocator.store.bitmap import Bitmap
from relocator.store.geometry import Geometry


@pytest.mark.parametrize("ragged_bytes", [0, 100, 1000, runs.MOST_RUN_BYTES])
def test_a_map_comes_back_however_ragged_it_is(ragged_bytes: int) -> None:
    bitmap = Bitmap(runs.MOST_RUN_BYTES * 32 + 5)
    bitmap.insert(8000, random.Random(ragged_bytes).randbytes(ragged_bytes))
    bitmap.set(bitmap.bits - 3, bitmap.bits)
    packed = runs.pack(bitmap)
    assert len(packed) <= runs.most_bytes(bitmap.bits)
    found = list(bitmap.set_runs(0, bitmap.bits))
    assert runs.unpack(packed, bitmap.bits) == found
    assert runs.pack_runs(found, bitmap.bits) == packed


def answer(theirs: Geometry, *written: int) -> Answer:
    bitmap = Bitmap(theirs.total_blocks)
    for block in written:
        bitmap.set(block, block + 1)
    return Answer({"block_bytes": theirs.block_bytes}, {"dirty": runs.pack(bitmap)})


@pytest.mark.parametrize("theirs", [512, 4096, 65536])
@pytest.mark.parametrize("ours", [512, 4096, 65536])
def test_a_map_of_other_blocks_names_every_block_that_has_something_of_it(
    theirs: int, ours: int
) -> None:
    size_bytes = (1 << 20) + 700
    source, here = Geometry(size_bytes, theirs), Geometry(size_bytes, ours)
    written = {0, 3, source.total_blocks // 2, source.total_blocks - 1}
    found = {
        block
        for first, end in answer(source, *written).blocks("dirty", here)
        for block in range(first, end)
    }
    wanted = {
        block for one in written for block in range(*here.touched(*source.extent(one, one + 1)))
    }
    assert found == wanted


@pytest.mark.parametrize("block_bytes", [0, 5000, "4096", None, 1.5])
def test_a_source_with_impossible_blocks_is_refused(block_bytes: object) -> None:
    wrong = Answer({"block_bytes": block_bytes}, {"dirty": runs.pack(Bitmap(8))})
    with pytest.raises(UpstreamError, match="block_bytes="):
        wrong.blocks("dirty", Geometry(4096))
