"""The cap by the time of day: what the wall clock says, also where it is set forward or back."""

import os
import time
from collections.abc import Iterator
from itertools import islice

import pytest

from relocator.config import parse_timetable
from relocator.copying.cap import LOOK_S, Cap
from relocator.copying.timetable import Timetable
from relocator.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The local time is Berlin's; no zone file is needed."""
    before = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    if before is None:
        monkeypatch.delenv("TZ")
    else:
        monkeypatch.setenv("TZ", before)
    time.tzset()


def at(text: str) -> float:
    """Seconds since 1970 of a local time."""
    return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M"))


def shown(at_s: float) -> str:
    return time.strftime("%d %H:%M", time.localtime(at_s))


def test_the_last_entry_holds_until_the_first_of_the_next_day() -> None:
    table = parse_timetable("rate", "23:30,none 07:00,20M 12:00,5M")
    rates = [table.rate_bits_per_s(at(f"2026-01-05 {hour}")) for hour in ("00:00", "06:59")]
    assert rates == [None, None]
    rates = [table.rate_bits_per_s(at(f"2026-01-05 {hour}")) for hour in ("07:00", "12:00")]
    assert rates == [20e6, 5e6]
    coming = islice(table.changes(at("2026-01-05 11:59") + 30), 3)
    assert [(shown(change.at_s), change.rate_bits_per_s) for change in coming] == [
        ("05 12:00", 5e6),
        ("05 23:30", None),
        ("06 07:00", 20e6),
    ]


def test_a_plain_rate_never_changes() -> None:
    for text in ("20M", " 20M ", "07:00,20M", "07:00,20M 8:00,20M"):
        table = parse_timetable("rate", text)
        assert table.rate_bits_per_s(0.0) == 20e6
        assert list(table.changes(0.0)) == []
    assert parse_timetable("rate", "none").rate_bits_per_s(0.0) is None


def test_an_entry_in_the_hour_that_is_left_out_holds_from_its_end() -> None:
    table = parse_timetable("rate", "02:30,20M 07:00,none")
    change = next(table.changes(at("2026-03-28 23:00")))
    assert (shown(change.at_s), change.rate_bits_per_s) == ("29 03:00", 20e6)


def test_the_entries_of_the_hour_that_comes_twice_hold_twice() -> None:
    table = parse_timetable("rate", "02:30,20M 07:00,none")
    coming = list(islice(table.changes(at("2026-10-24 23:00")), 4))
    assert [(shown(change.at_s), change.rate_bits_per_s) for change in coming] == [
        ("25 02:30", 20e6),
        ("25 02:00", None),
        ("25 02:30", 20e6),
        ("25 07:00", None),
    ]
    assert coming[2].at_s - coming[0].at_s == 3600


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("07:00,20M 24:00,none", "'24:00,none' is no entry of a timetable; write HH:MM,RATE"),
        ("07:00,20M 23:30", "'23:30' is no entry of a timetable"),
        ("07:00,20M 23:30,", "'23:30,' is no entry of a timetable"),
        ("07:60,20M", "'07:60,20M' is no entry of a timetable"),
        ("20M 23:30,none", "'20M' is no entry of a timetable"),
        ("07:00,20M,23:30,none", "rate=20M,23:30,none: not a rate in bits a second"),
        ("07:00,20M 7:00,none", "7:00 is there twice; give each time once"),
        ("07:00,0", "rate=0: not a rate in bits a second"),
        (" ", "is empty; write 50M, none, or '07:00,20M 23:30,none'"),
    ],
)
def test_a_wrong_entry_is_named(text: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_timetable("rate", text)
    assert wanted in str(refusal.value)


def test_the_cap_follows_the_clock_while_it_is_waited_for() -> None:
    wall_s = [at("2026-01-05 06:59") + 59.0]
    cap = Cap(
        parse_timetable("rate", "07:00,none 23:30,8K"), None, lambda: 0, wall=lambda: wall_s[0]
    )
    cap.delay_s(0.0)
    cap.take(128 << 10, 0.0)  # two minutes of 8 kbit/s
    assert cap.delay_s(0.5) == LOOK_S
    wall_s[0] += 1.0
    assert (cap.delay_s(1.0), cap.rate_bits_per_s(1.0)) == (0.0, None)


def test_what_was_sent_too_early_is_paid_for_at_the_new_rate() -> None:
    cap = Cap(Timetable((0, 8e3)), None, lambda: 0, wall=lambda: 0.0)
    cap.delay_s(0.0)
    cap.take(10_000, 0.0)  # ten seconds
    cap.set_rate(Timetable((0, 8e5)))
    assert cap.delay_s(0.0) == pytest.approx(0.1, rel=0.02)
