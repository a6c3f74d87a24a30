"""The ledger's records, and that its checker finds what it is for."""

from hypothesis import given
from hypothesis import strategies as st

from testbed.workloads.ledger import RECORD_BYTES, Acknowledged, check, parse_log, record


def acknowledged(*writes: tuple[int, int]) -> list[Acknowledged]:
    return [Acknowledged(sequence, slot, 0.0, 0.0) for sequence, slot in writes]


def disk(slots: int, *writes: tuple[int, int]) -> dict[int, bytes]:
    held = dict.fromkeys(range(slots), bytes(RECORD_BYTES))
    for sequence, slot in writes:
        held[slot] = record(sequence, slot)
    return held


@given(st.lists(st.integers(0, 7), max_size=40))
def test_a_disk_with_every_acknowledged_write_passes(slots: list[int]) -> None:
    writes = list(enumerate(slots))
    assert check(acknowledged(*writes), 8, disk(8, *writes).__getitem__) == []


@given(st.lists(st.integers(0, 7), min_size=1, max_size=40), st.data())
def test_a_lost_write_is_found(slots: list[int], data: st.DataObject) -> None:
    writes = list(enumerate(slots))
    lost = data.draw(st.sampled_from(sorted(set(slots))))
    newest = max(sequence for sequence, slot in writes if slot == lost)
    held = disk(8, *(write for write in writes if write[0] != newest))
    (problem,) = check(acknowledged(*writes), 8, held.__getitem__)
    assert f"write {newest} was acknowledged" in problem


def test_the_write_in_flight_at_the_end_may_be_there() -> None:
    assert check(acknowledged((0, 3)), 8, disk(8, (0, 3), (1, 5)).__getitem__) == []
    assert check(acknowledged((0, 3)), 8, disk(8, (0, 3), (2, 5)).__getitem__) != []


def test_a_torn_or_misplaced_record_is_found() -> None:
    held = disk(8, (0, 3))
    held[3] = held[3][:2048] + bytes(2048)
    assert check(acknowledged((0, 3)), 8, held.__getitem__) != []
    held = disk(8, (0, 3))
    held[4] = held[3]
    assert check(acknowledged((0, 3)), 8, held.__getitem__) != []


def test_the_log_is_read_back() -> None:
    assert parse_log(["7,3,1.500000000,0.000100000"]) == [Acknowledged(7, 3, 1.5, 0.0001)]
