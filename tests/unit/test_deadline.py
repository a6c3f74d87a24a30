"""The least rate that is complete in time, and by how much it is missed."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relocator.config import parse_timetable
from relocator.copying.cap import METER_S, Cap
from relocator.copying.deadline import Deadline, duration_s, least_rate, parse_moment, until
from relocator.copying.timetable import NO_CAP, Rate, Timetable
from relocator.errors import ConfigError

MB = 10**6
spans = st.lists(st.tuples(st.floats(1, 1e5), st.none() | st.floats(1e3, 1e9)), min_size=1)


class Copy:
    """A copy that sends 100 kB at a time when `cap` lets it, on a link that carries so much."""

    def __init__(
        self, left_bytes: int, finish_in_s: float, rate: Timetable = NO_CAP, link: float = 1e9
    ) -> None:
        self.start_s = self.now_s = datetime(2026, 1, 5, 12).timestamp()
        self.left_bytes, self.link = left_bytes, link
        self.cap = Cap(
            rate, self.start_s + finish_in_s, lambda: self.left_bytes, wall=lambda: self.now_s
        )

    def run(self, seconds: float, at_each: Callable[[], None] = lambda: None) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s and self.left_bytes:
            if (delay_s := self.cap.delay_s(self.now_s)) > 0:
                self.now_s += delay_s
                continue
            at_each()
            self.cap.take(100_000, self.now_s)
            self.left_bytes -= min(100_000, self.left_bytes)
            self.now_s += 100_000 * 8 / self.link

    @property
    def took_s(self) -> float:
        return self.now_s - self.start_s

    @property
    def late_s(self) -> float | None:
        found = self.cap.finish_by(self.now_s)
        assert found is not None
        return found[1]


@given(st.floats(1, 1e12), spans)
def test_the_least_rate_carries_just_enough_and_a_lower_one_does_not(
    bits: float, given_spans: list[tuple[float, Rate]]
) -> None:
    def carried(rate: float) -> float:
        return sum(d * (rate if cap is None else min(cap, rate)) for d, cap in given_spans)

    rate = least_rate(bits, given_spans)
    if rate is None:
        assert carried(float("inf")) < bits * (1 + 1e-9)
    else:
        assert carried(rate) == pytest.approx(bits)
        assert carried(rate * 0.99) < bits


def test_it_takes_as_long_as_its_spans_and_the_link_let_it() -> None:
    assert duration_s(100, [(5, 10), (5, 20)], None) == pytest.approx(7.5)
    assert duration_s(100, [(5, 10), (float("inf"), None)], 5) == pytest.approx(20)
    assert duration_s(0, [(5, 10)], 0.0) == 0.0
    assert duration_s(100, [(5, 10)], None) is None
    assert until(7, [(5, 10), (5, 20)]) == [(5, 10), (2, 20)]
    assert until(-1, [(5, 10)]) == []


def test_the_copy_is_complete_within_the_margin_and_not_much_before() -> None:
    copy = Copy(100 * MB, 1000)
    seen: set[float | None] = set()
    copy.run(2000, lambda: seen.add(copy.late_s))
    assert copy.left_bytes == 0
    assert 0.9 * 950 < copy.took_s < 1000
    assert seen == {0.0}


def test_time_that_was_lost_is_made_up_for() -> None:
    copy = Copy(100 * MB, 1000)
    copy.run(300)
    before = copy.cap.rate_bits_per_s(copy.now_s)
    copy.now_s += 300  # the source was away
    after = copy.cap.rate_bits_per_s(copy.now_s)
    assert before is not None
    assert after is not None
    assert after == pytest.approx(before * 650 / 350, rel=0.1)
    copy.run(2000)
    assert (copy.left_bytes, copy.took_s < 1000) == (0, True)


def test_a_timetable_is_not_exceeded_and_the_other_hours_carry_more() -> None:
    # 12:00 to 12:10 capped, after that free: 100 MB until 12:20
    table = parse_timetable("rate", "12:00,80K 12:10,none")
    copy = Copy(100 * MB, 1200, table)
    assert copy.cap.rate_bits_per_s(copy.now_s) == 80e3
    copy.run(600)
    assert 100 * MB - copy.left_bytes <= 80e3 / 8 * 600 + 200_000
    assert copy.late_s == 0.0
    copy.run(2000)
    assert (copy.left_bytes, 600 < copy.took_s < 1200) == (0, True)


def test_what_the_timetable_cannot_carry_is_said_at_once() -> None:
    copy = Copy(100 * MB, 1000, Timetable((0, 400e3)))  # takes 2000 s
    assert copy.late_s == pytest.approx(1000)
    assert copy.cap.rate_bits_per_s(copy.now_s) == 400e3


def test_what_the_link_cannot_carry_is_said_once_it_is_measured() -> None:
    copy = Copy(100 * MB, 1000, link=400e3)
    assert copy.late_s == 0.0
    copy.run(METER_S + 30)
    assert copy.late_s == pytest.approx(1000, rel=0.1)
    copy.link = 1e9
    copy.run(METER_S + 30)
    assert copy.late_s == 0.0


def test_a_copy_that_stands_still_has_no_end_in_sight() -> None:
    copy = Copy(100 * MB, 1000)
    copy.cap.delay_s(copy.now_s)
    copy.now_s += METER_S + 1
    assert copy.late_s is None


def test_a_deadline_that_has_passed_caps_nothing() -> None:
    copy = Copy(100 * MB, -60)
    assert copy.cap.rate_bits_per_s(copy.now_s) is None
    assert copy.late_s == 60.0


def test_little_that_is_left_is_not_sent_by_the_bit() -> None:
    deadline = Deadline.set_at(0.0, 86400.0)
    assert deadline.rate_bits_per_s(0.0, 1, [(float("inf"), None)]) == 8e3


def test_a_moment_is_the_next_of_its_hour_or_a_day_with_its_hour() -> None:
    now = datetime.now()
    at_s = parse_moment("finish-by", "00:00")
    assert (
        at_s == (now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(1)).timestamp()
    )
    in_utc = datetime.now().astimezone().replace(microsecond=0)
    assert parse_moment("finish-by", in_utc.isoformat()) == in_utc.timestamp()
    local = now.replace(second=0, microsecond=0)
    assert parse_moment("finish-by", local.isoformat()) == local.timestamp()
    assert parse_moment("finish-by", "none") is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("24:00", "finish-by=24:00: not a time; write HH:MM, YYYY-MM-DDTHH:MM or none"),
        ("soon", "finish-by=soon: not a time"),
        ("2026-11-28", "finish-by=2026-11-28: not a time"),
        ("2026-02-30T07:00", "finish-by=2026-02-30T07:00: not a time"),
        (f"{time.gmtime().tm_year + 2}-01-01T00:00", "is too far away; at most 31 days from now"),
    ],
)
def test_a_wrong_moment_is_refused(text: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_moment("finish-by", text)
    assert wanted in str(refusal.value)
