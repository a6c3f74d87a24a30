"""What a disk is known by."""

import pytest

from relocator.source.identity import agree, places


@pytest.mark.parametrize("size_bytes", [1, 4096, 5000, 100_000, 1 << 20, (1 << 20) + 1, 1 << 40])
def test_samples_lie_within_the_disk_and_are_few(size_bytes: int) -> None:
    found = places(size_bytes)
    assert found[0].offset == 0
    assert found[-1].offset + found[-1].length == size_bytes
    assert all(one.length > 0 and one.offset + one.length <= size_bytes for one in found)
    assert len(found) <= 20


def test_a_place_that_could_not_be_read_says_nothing() -> None:
    assert agree("a b c", "a - c")
    assert agree("a - c", "a b c")
    assert not agree("a - c", "a b d")
