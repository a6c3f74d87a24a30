"""The bitmap against a set of integers."""

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relocator.store.bitmap import CHUNK_BYTES, Bitmap

BITS = 300
ranges = st.tuples(st.integers(0, BITS), st.integers(0, BITS)).map(sorted)
steps = st.lists(st.tuples(st.sampled_from(["set", "clear"]), ranges), max_size=12)


def build(operations: list) -> tuple[Bitmap, set[int]]:
    bitmap, model = Bitmap(BITS, bytearray(64), 3), set()
    for name, (first, end) in operations:
        touched = set(range(first, end))
        expected = len(touched - model) if name == "set" else len(touched & model)
        assert getattr(bitmap, name)(first, end) == expected
        model = model | touched if name == "set" else model - touched
    return bitmap, model


@given(steps, ranges)
def test_every_question_is_answered_as_by_a_set(operations: list, window: list) -> None:
    bitmap, model = build(operations)
    first, end = window
    inside = [i for i in range(first, end) if i in model]
    outside = [i for i in range(first, end) if i not in model]
    assert [bitmap[i] for i in range(BITS)] == [i in model for i in range(BITS)]
    assert bitmap.count(first, end) == len(inside)
    assert bitmap.all(first, end) == (not outside)
    assert bitmap.any(first, end) == bool(inside)
    assert bitmap.next_set(first, end) == (inside[0] if inside else end)
    assert bitmap.next_clear(first, end) == (outside[0] if outside else end)
    assert [i for a, b in bitmap.set_runs(first, end) for i in range(a, b)] == inside
    assert [i for a, b in bitmap.clear_runs(first, end) for i in range(a, b)] == outside


@given(steps)
def test_bytes_around_the_map_are_never_touched(operations: list) -> None:
    buffer = bytearray(b"\xa5" * 64)
    bitmap = Bitmap(BITS, buffer, 3)
    for name, (first, end) in operations:
        getattr(bitmap, name)(first, end)
    assert buffer[:3] == b"\xa5" * 3
    assert buffer[3 + bitmap.nbytes :] == b"\xa5" * (64 - 3 - bitmap.nbytes)


def test_runs_across_pieces_of_a_large_map() -> None:
    bitmap = Bitmap(5_000_000, mmap.mmap(-1, 700_000))
    assert bitmap.set(1_000_000, 4_000_001) == 3_000_001
    assert bitmap.clear(2_000_000, 2_000_001) == 1
    assert list(bitmap.set_runs(0, 5_000_000)) == [(1_000_000, 2_000_000), (2_000_001, 4_000_001)]
    assert bitmap.count() == 3_000_000


LARGE_BITS = CHUNK_BYTES * 8 * 4 + 77
places = st.integers(0, LARGE_BITS)
large_steps = st.lists(
    st.tuples(st.sampled_from(["set", "clear"]), st.tuples(places, places).map(sorted)), max_size=4
)


def lowest(value: int, first: int, end: int) -> int:
    """The lowest bit of `first..end` that is set in `value`, else `end`."""
    inside = value >> first & ((1 << (end - first)) - 1)
    return first + (inside & -inside).bit_length() - 1 if inside else end


@given(large_steps, st.tuples(places, places).map(sorted))
def test_a_map_of_many_chunks_is_answered_as_by_one_number(operations: list, window: list) -> None:
    bitmap, model = Bitmap(LARGE_BITS), 0
    for name, (first, end) in operations:
        mask = (1 << end) - (1 << first)
        getattr(bitmap, name)(first, end)
        model = model | mask if name == "set" else model & ~mask
    first, end = window
    assert bitmap.count(first, end) == (model >> first & ((1 << (end - first)) - 1)).bit_count()
    assert bitmap.next_set(first, end) == lowest(model, first, end)
    assert bitmap.next_clear(first, end) == lowest(~model, first, end)
    start = first & ~7
    content = bitmap.extract(start, end)
    assert int.from_bytes(content, "little") == model >> start & ((1 << (end - start)) - 1)
    copy = Bitmap(LARGE_BITS)
    copy.insert(start, content)
    assert copy.count() == copy.count(start, end) == bitmap.count(start, end)


def test_what_was_never_set_is_never_read() -> None:
    memory = mmap.mmap(-1, CHUNK_BYTES * 8)
    memory[CHUNK_BYTES * 5] = 1  # by somebody else: who looks there would find it
    bitmap = Bitmap(CHUNK_BYTES * 8 * 8, memory, empty=True)
    bitmap.set(3, 5)
    bitmap.set(CHUNK_BYTES * 8 * 7, CHUNK_BYTES * 8 * 7 + 1)
    assert bitmap.count() == 3
    assert [first for first, _ in bitmap.set_runs(0, bitmap.bits)] == [3, CHUNK_BYTES * 8 * 7]
    bitmap.expect(CHUNK_BYTES * 5, CHUNK_BYTES * 5 + 1)
    assert bitmap.count() == 4


def test_a_buffer_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="too small for 9 bits"):
        Bitmap(9, bytearray(1))
