"""What the source has failed to read: when it is asked for again, and what is told of it."""

import time

import pytest

from relocator.copying.cap import Cap
from relocator.copying.pacer import HOLD_S, MOST_STUCK_BYTES, Pacer
from relocator.copying.pacing import Window
from relocator.copying.refused import AGAIN_S, FIRST_S, Refused
from relocator.errors import RefusedError, StoreError, UpstreamError
from relocator.store.bitmap import Bitmap


def asked(refused: Refused, now_s: float) -> list[tuple[int, int]]:
    found = []
    while (due := refused.due(now_s)) is not None:
        found.append(due)
    return found


def test_halves_come_at_once_and_a_block_later_each_time() -> None:
    refused = Refused(64)
    assert refused.due(0.0) is None and refused.absent(Bitmap(64)) == (0, 0)
    refused.note(8, 13, 0.0)
    assert refused.absent(Bitmap(64)) == (5, 8)
    assert asked(refused, 0.0) == [(8, 10), (10, 13)]
    at_s = 0.0
    for delay_s in (FIRST_S, 2 * FIRST_S, 4 * FIRST_S):
        refused.note(9, 10, at_s)
        assert asked(refused, at_s + delay_s - 0.1) == []
        at_s += delay_s
        assert asked(refused, at_s) == [(9, 10)]
    for _ in range(10):
        refused.note(9, 10, at_s)
        at_s += AGAIN_S
        assert asked(refused, at_s) == [(9, 10)]
    refused.asked(9, 10)
    assert refused.absent(Bitmap(64)) == (1, 9)  # until it has come
    refused.forget(9, 10)
    assert refused.absent(Bitmap(64)) == (0, 0)
    refused.note(9, 10, 0.0)
    assert asked(refused, FIRST_S) == [(9, 10)]  # it begins anew


def test_what_is_present_by_now_is_not_told() -> None:
    refused, present = Refused(64), Bitmap(64)
    refused.note(8, 12, 0.0)
    present.set(0, 10)
    assert refused.absent(present) == (2, 10)


class Told:
    """A pacer, what it has told last, and its window."""

    def __init__(self) -> None:
        self.last: str | None = None
        self.window = Window(None)
        cap = Cap(None, None, lambda: 0)
        self.pacer = Pacer(self.window, cap, over=lambda: False, report=self._report)
        self.pacer.set_enabled(True)

    def _report(self, message: str | None) -> None:
        self.last = message

    @property
    def holds(self) -> bool:
        return self.pacer._hold_until_s > time.monotonic() + HOLD_S / 2


@pytest.fixture
def told() -> Told:
    return Told()


def test_one_bad_place_holds_nothing_and_two_in_a_row_do(told: Told) -> None:
    told.pacer.background(4096)(RefusedError("a bad sector"))
    assert not told.holds and told.last is None
    told.pacer.background(4096)(None)
    told.pacer.background(4096)(RefusedError("a bad sector"))
    assert not told.holds
    told.pacer.background(4096)(RefusedError("a bad sector"))
    assert told.holds


@pytest.mark.parametrize("error", [StoreError("full"), UpstreamError("lost")])
def test_any_other_failure_holds_at_once_and_is_told(told: Told, error: Exception) -> None:
    told.pacer.background(4096)(error)
    assert told.holds and told.last == str(error)


def test_what_is_lacked_is_told_on_until_it_is_there(told: Told) -> None:
    told.pacer.lacks("a sector")
    told.pacer.background(4096)(UpstreamError("lost"))
    assert told.last == "lost"
    told.pacer.background(4096)(None)
    assert told.last == "a sector"
    told.pacer.silence("no answer")
    assert told.last == "no answer"
    told.pacer.silence(None)
    assert told.last == "a sector"
    told.pacer.lacks(None)
    assert told.last is None


def test_what_stays_out_does_not_shut_the_window(told: Told) -> None:
    fetches = [told.pacer.background(1 << 20) for _ in range(10)]
    for fetch in fetches:
        fetch.stuck()
    assert told.window.in_flight_bytes == (10 << 20) - MOST_STUCK_BYTES
    for fetch in fetches:
        fetch(None)
    assert told.window.in_flight_bytes == 0
    one = told.pacer.background(MOST_STUCK_BYTES)
    one.stuck()
    assert told.window.in_flight_bytes == 0
