"""The order by heat where a block is larger or smaller than what heat is known of."""

import pytest

from relocator.copying import ordering
from relocator.copying.ordering import Knowledge

GROUP = 1 << 18
GROUPS = 64


def first_bytes(block_bytes: int, **known: list[float]) -> list[int]:
    """Where each of the ordered ranges begins."""
    total = GROUPS * GROUP // block_bytes
    knowledge = Knowledge(total, block_bytes, heat_shift=GROUP.bit_length() - 1, **known)
    return [first * block_bytes for first, _ in ordering.build(("hot",), knowledge)]


@pytest.mark.parametrize("block_bytes", [4096, GROUP, 4 * GROUP, 16 * GROUP])
def test_the_block_of_the_hottest_group_comes_first(block_bytes: int) -> None:
    heat = [0.0] * GROUPS
    heat[42], heat[3] = 9.0, 5.0
    found = first_bytes(block_bytes, heat=heat)
    size = max(block_bytes, GROUP)
    assert found[:2] == [42 * GROUP // size * size, 3 * GROUP // size * size]


@pytest.mark.parametrize("block_bytes", [4096, 4 * GROUP])
def test_of_writes_alone_the_block_that_is_written_most_comes_last(block_bytes: int) -> None:
    written = [0.0] * GROUPS
    written[5] = 1.0
    size = max(block_bytes, GROUP)
    assert first_bytes(block_bytes, written=written)[-1] == 5 * GROUP // size * size
