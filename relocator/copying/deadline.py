"""By when the copy is to be complete (`finish-by=`), and at which rate. Pure: time is passed in.

The copy aims at a moment before the deadline, by `MARGIN` of the time that there was when it was
set, and goes at the least steady rate that gets what is left here until then. The rate is worked
out anew again and again, so whatever comes between (a slow hour, blocks that the guest fetched,
holes that needn't come) is made up for or saved.

A timetable is never exceeded: where it caps for a while, the rest of the time carries more, and
where that isn't enough the deadline is missed.
"""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import accumulate
from typing import NamedTuple

from relocator.copying.timetable import Rate
from relocator.errors import ConfigError

MARGIN = 0.05
LEAST_MARGIN_S = 2.0
MOST_MARGIN_S = 600.0
LEAST_RATE_BITS_PER_S = 8e3
HORIZON_S = 31 * 86400.0

Span = tuple[float, Rate]  # seconds, and the cap meanwhile


class Deadline(NamedTuple):
    """The copy is to be complete at `at_s`, and aims at `aim_s` (seconds since 1970)."""

    at_s: float
    aim_s: float

    @classmethod
    def set_at(cls, now_s: float, at_s: float) -> "Deadline":
        """A deadline that is set at `now_s`."""
        margin_s = min(MOST_MARGIN_S, max(LEAST_MARGIN_S, (at_s - now_s) * MARGIN))
        return cls(at_s, at_s - margin_s)

    def rate_bits_per_s(self, now_s: float, left_bytes: int, spans: Iterable[Span]) -> Rate:
        """The least rate that holds, under the caps of `spans` from now on; None: none does."""
        rate = least_rate(left_bytes * 8, until(self.aim_s - now_s, spans))
        return None if rate is None else max(rate, LEAST_RATE_BITS_PER_S)

    def late_s(
        self, now_s: float, left_bytes: int, spans: Iterable[Span], carried: Rate
    ) -> float | None:
        """By how many seconds it is missed if the link carries `carried` at most; 0.0: it holds.

        None: not within `HORIZON_S`.
        """
        needed_s = duration_s(left_bytes * 8, until(HORIZON_S, spans), carried)
        return None if needed_s is None else max(0.0, now_s + needed_s - self.at_s)


def until(length_s: float, spans: Iterable[Span]) -> list[Span]:
    """The first `length_s` seconds of `spans`."""
    found: list[Span] = []
    for seconds, rate in spans:
        if length_s <= 0:
            break
        found.append((min(seconds, length_s), rate))
        length_s -= seconds
    return found


def least_rate(bits: float, spans: Iterable[Span]) -> Rate:
    """The least rate that carries `bits` within `spans`, less where a span caps it; None: none."""
    by_cap = sorted(spans, key=lambda span: float("inf") if span[1] is None else span[1])
    left_s = [*accumulate(seconds for seconds, _ in reversed(by_cap))][::-1]
    for (seconds, cap), time_s in zip(by_cap, left_s, strict=True):
        if cap is None or bits <= cap * time_s:
            return bits / time_s
        bits -= cap * seconds
    return None


def duration_s(bits: float, spans: Iterable[Span], carried: Rate) -> float | None:
    """How many seconds `bits` take if each span carries its cap, but `carried` at most."""
    elapsed_s = 0.0
    for seconds, cap in spans:
        rate = min(float("inf") if one is None else one for one in (cap, carried))
        if bits <= rate * seconds:
            return elapsed_s + bits / rate if bits else elapsed_s
        bits -= rate * seconds
        elapsed_s += seconds
    return None


def parse_moment(key: str, text: str) -> float | None:
    """`HH:MM` (the next time that local clocks show it), ISO 8601 date and time, or `none` (None).

    In seconds since 1970; without an offset from UTC a time is local.
    """
    now = datetime.now()
    try:
        if text == "none":
            return None
        if re.fullmatch(r"\d\d?:\d\d", text):
            hour, minute = map(int, text.split(":"))
            today = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
            moment = today if today > now else today + timedelta(days=1)
        elif ":" in text:
            moment = datetime.fromisoformat(text)
        else:
            raise ValueError
        at_s = moment.timestamp()
    except (ValueError, OverflowError) as error:
        why = "not a time; write HH:MM, YYYY-MM-DDTHH:MM or none"
        raise ConfigError(f"{key}={text}: {why}") from error
    if at_s - now.timestamp() > HORIZON_S:
        raise ConfigError(f"{key}={text}: is too far away; at most 31 days from now")
    return at_s
