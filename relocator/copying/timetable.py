"""The cap of the background copy by the time of day (`rate=`). Pure: time is passed in.

A timetable's entries say from which minute of the day on, by the local clock, which rate is the
most; the day's last one goes on past midnight until the first. A plain rate is a timetable of one
entry.

What the clock on the wall shows decides, whenever it is asked. So where clocks go forward an hour,
an entry within that hour holds from its end on; where they go back, an hour's entries hold twice.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

DAY_MINUTES = 24 * 60
MOST_ENTRIES = 96

Rate = float | None  # bits a second; None is no cap
LocalTime = Callable[[float], time.struct_time]


class Change(NamedTuple):
    """From `at_s` (seconds since 1970) on the cap is `rate_bits_per_s`."""

    at_s: float
    rate_bits_per_s: Rate


class Timetable:
    """Caps by the time of day: `entries` are a minute of the day and a rate each, none twice."""

    def __init__(self, *entries: tuple[int, Rate], local: LocalTime = time.localtime) -> None:
        self.entries = sorted(entries, key=lambda entry: entry[0])
        self._minutes = [minute for minute, _ in self.entries]
        self._rates = [rate for _, rate in self.entries]
        self._local = local

    def rate_bits_per_s(self, now_s: float) -> Rate:
        """The cap at `now_s`."""
        if len(self._rates) == 1:
            return self._rates[0]
        now = self._local(now_s)
        return self._rates[bisect_right(self._minutes, now.tm_hour * 60 + now.tm_min) - 1]

    def changes(self, now_s: float) -> Iterator[Change]:
        """The changes of the cap after `now_s`, in order and without end; none for a plain rate."""
        if len(set(self._rates)) == 1:
            return
        rate, at_s = self.rate_bits_per_s(now_s), now_s - now_s % 60
        while True:
            at_s = self._next_entry_s(at_s)
            if (new := self.rate_bits_per_s(at_s)) != rate:
                rate = new
                yield Change(at_s, new)

    def spans(self, now_s: float) -> Iterator[tuple[float, Rate]]:
        """For how many seconds which cap holds, from `now_s` on without end."""
        at_s, rate = now_s, self.rate_bits_per_s(now_s)
        for change in self.changes(now_s):
            yield change.at_s - at_s, rate
            at_s, rate = change
        yield float("inf"), rate

    def _next_entry_s(self, at_s: float) -> float:
        """The first minute after `at_s` (one too) at which the wall clock may meet an entry.

        The clock may be set back or forward on the way, so never further than to the next hour.
        """
        now = self._local(at_s)
        minute = now.tm_hour * 60 + now.tm_min
        ahead = bisect_right(self._minutes, minute)
        to_entry = (self._minutes[ahead] if ahead < len(self._minutes) else DAY_MINUTES) - minute
        return at_s + 60 * min(to_entry, 60 - minute % 60)


NO_CAP = Timetable((0, None))
