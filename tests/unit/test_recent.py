"""The working set: what is remembered of reads, what is not, and what comes first."""

from pathlib import Path

import pytest

from relocator.copying import hints, ordering, recent
from relocator.copying.ordering import Knowledge
from relocator.copying.plan import Plan
from relocator.copying.recent import Recent
from relocator.errors import UpstreamError
from relocator.source.answer import Answer
from relocator.store.geometry import Geometry

BLOCK = 4096


def noted(most: int = 1 << 10, path: Path | None = None) -> Recent:
    return Recent(lambda: 0.0, most, path)


def read(working_set: Recent, *blocks: int) -> None:
    for block in blocks:
        working_set.note_read(block * BLOCK, BLOCK)


def told(working_set: Recent, most: int | None = None) -> list[int]:
    """The first blocks of the places, in their order."""
    return [place >> 4 for place in recent.unpack(working_set.places(most))]


def test_what_was_read_again_comes_first_and_the_last_of_it_before_all() -> None:
    working_set = noted()
    read(working_set, 5, 6, 7, 6, 5)
    assert told(working_set) == [6, 5, 7]
    working_set.turn()
    assert told(working_set) == [6, 5, 7]
    read(working_set, 7, 9)
    working_set.turn()
    assert told(working_set) == [7, 6, 5, 9]
    assert told(working_set, 2) == [7, 6]


def test_a_reader_of_the_whole_disk_does_not_flush_what_is_used_again() -> None:
    working_set = noted(most=64)
    for _ in range(3):
        read(working_set, *range(20))
        working_set.turn()
    for first in range(1000, 9000, 50):
        read(working_set, *range(first, first + 50))
        working_set.turn()
    assert set(told(working_set)[:20]) == set(range(20))
    assert len(told(working_set)) == 20 + 32


def test_no_more_is_remembered_than_was_said() -> None:
    working_set = noted(most=64)
    read(working_set, *range(1000))
    assert len(told(working_set)) == 64
    for first in range(0, 1000, 60):
        read(working_set, *range(first, first + 60), *range(first, first + 60))
        working_set.turn()
    assert len(told(working_set)) == 32
    nothing = noted(most=0)
    read(nothing, 1, 2, 1)
    assert told(nothing) == []


def test_one_read_is_one_place_and_a_large_one_none() -> None:
    working_set = noted()
    working_set.note_read(3 * BLOCK + 512, 3 * BLOCK)
    working_set.note_read(100 * BLOCK, 17 * BLOCK)
    working_set.note_read(200 * BLOCK, 16 * BLOCK)
    working_set.note_read(1 << 62, BLOCK)
    places = recent.unpack(working_set.places())
    assert list(places) == [(1 << 62) // BLOCK << 4, 200 << 4 | 15, 3 << 4 | 3]
    assert list(recent.ranges(places, BLOCK, 210)) == [(3, 7), (200, 210)]
    assert list(recent.ranges(places, 4 * BLOCK, 1000)) == [(0, 2), (50, 54)]


def test_neighbours_that_were_read_at_about_the_same_time_travel_as_one() -> None:
    places = [9 << 4, 7 << 4, 8 << 4 | 1, 2 << 4, 3 << 4]
    assert list(recent.ranges(places, BLOCK, 100)) == [(2, 4), (7, 10)]


def test_places_survive_a_restart_and_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "recent"
    working_set = noted(path=path)
    read(working_set, 5, 6, 6)
    working_set.turn()
    assert told(noted(path=path)) == [6, 5]
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert told(noted(path=path)) == []
        path.write_bytes(whole[:at])
        assert told(noted(path=path)) == []
    path.write_bytes(b"")
    again = noted(path=path)
    read(again, 1)
    again.turn()
    assert told(noted(path=path)) == [1]


def test_what_a_source_sends_is_checked() -> None:
    with pytest.raises(UpstreamError, match="working set can't be read"):
        recent.unpack(b"no such thing")


def test_a_source_that_sends_no_working_set_leaves_the_order_as_it_was() -> None:
    plan = Plan(Geometry(1 << 20), ("recent", "hot"), heat_shift=18, trace=())
    hints.tell_recent(Answer({}, {}), plan)
    assert (plan.known, plan.generation) == ([], 0)
    working_set = noted()
    read(working_set, 3)
    hints.tell_recent(Answer({}, {"recent": working_set.places()}), plan)
    assert (plan.known, list(plan.named())) == (["recent"], [(3, 4)])
    hints.tell_recent(Answer({}, {"recent": b"no such thing"}), plan)  # nor one that is damaged
    assert list(plan.named()) == [(3, 4)]


def test_an_order_begins_with_the_places_only_if_it_says_so() -> None:
    knowledge = Knowledge(100, BLOCK, recent=[40 << 4, 20 << 4 | 1], trace=[7])
    assert list(ordering.named(("recent", "hot"), knowledge)) == [(20, 22), (40, 41)]
    assert list(ordering.named(("hot",), knowledge)) == []
    both = ordering.named(("trace:x", "recent"), knowledge)
    assert list(both) == [(7, 8), (20, 22), (40, 41)]
