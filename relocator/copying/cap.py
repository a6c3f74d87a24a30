"""What the operator allows the background copy: the rate of the hour (`rate=`), shared with others
where there is a group (`rate-group=`), and no more than it takes to be complete in time
(`finish-by=`).

Not thread-safe: the pacer's lock guards it. Time is passed in as two clocks: `now_s` is monotonic,
the wall clock is what timetables and deadlines are in. What is allowed is worked out anew once in
`LOOK_S`.

What the link carries is known only while nothing else holds the copy back: when less was sent than
was allowed, over `METER_S` seconds.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from relocator.copying.deadline import Deadline
from relocator.copying.pacing import TokenBucket
from relocator.copying.sharing import Share
from relocator.copying.timetable import NO_CAP, Change, Rate, Timetable

LOOK_S = 1.0
METER_S = 5.0
HELD_BACK = 0.9


class Look(NamedTuple):
    """At a moment: what had been sent until then, and what was allowed from then on."""

    at_s: float
    sent_bytes: int
    rate_bits_per_s: Rate


class Cap:
    """When the next bytes may be sent. `left_bytes` says how much is still to come."""

    def __init__(
        self,
        rate: Timetable | None,
        finish_by_s: float | None,
        left_bytes: Callable[[], int],
        *,
        share: Share | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._wall = wall
        self._left_bytes = left_bytes
        self._bucket = TokenBucket(None)
        self._timetable = NO_CAP
        self.share = share
        self._shared_rate: Rate = None
        self._deadline: Deadline | None = None
        self._look_at_s = 0.0
        self._sent_bytes = 0
        self._looks: deque[Look] = deque()
        self.set_finish_by(finish_by_s)
        if rate is not None:
            self.set_rate(rate)

    @property
    def has_deadline(self) -> bool:
        """Whether what is left has to come in time."""
        return self._deadline is not None

    def set_rate(self, rate: Timetable) -> None:
        """Another cap or timetable, from now on; the whole group's, if there is one."""
        if self.share is not None:
            self.share.set_timetable(rate)
        self._timetable = rate
        self._change()

    def set_finish_by(self, at_s: float | None) -> None:
        """Another deadline, in seconds since 1970, or none."""
        self._deadline = None if at_s is None else Deadline.set_at(self._wall(), at_s)
        self._change()

    def _change(self) -> None:
        self._look_at_s = 0.0
        self._looks.clear()

    def delay_s(self, now_s: float) -> float:
        """Seconds until something may be sent, as far as that is known now: at most `LOOK_S`."""
        self._look(now_s)
        delay_s = min(LOOK_S, self._bucket.delay_s(now_s))
        if delay_s > 0 or self.share is None or self._shared_rate is None:
            return delay_s
        return self.share.delay_s(now_s, self._shared_rate)

    def take(self, length: int, now_s: float) -> None:
        """Note that `length` bytes are sent now."""
        self._sent_bytes += length
        self._bucket.take(length, now_s)
        if self.share is not None and self._shared_rate is not None:
            self.share.take(length, now_s, self._shared_rate)

    def rate_bits_per_s(self, now_s: float) -> Rate:
        """What is allowed now; None is no cap."""
        self._look(now_s)
        return self._bucket.rate_bits_per_s

    def next_change(self) -> Change | None:
        """When the timetable has another cap, and which."""
        return next(self._timetable.changes(self._wall()), None)

    def finish_by(self, now_s: float) -> tuple[float, float | None] | None:
        """The deadline (seconds since 1970), and by how many seconds it will be missed.

        0.0 if it holds, as far as is known; None if no end is in sight. All None: no deadline.
        """
        if self._deadline is None:
            return None
        self._look(now_s)
        wall_s = self._wall()
        spans = self._timetable.spans(wall_s)
        late_s = self._deadline.late_s(wall_s, self._left_bytes(), spans, self._carried(now_s))
        return self._deadline.at_s, late_s

    def _look(self, now_s: float) -> None:
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_S
        wall_s = self._wall()
        if self.share is not None:
            self._timetable = self.share.timetable
        rate = self._shared_rate = self._timetable.rate_bits_per_s(wall_s)
        if self._deadline is not None:
            spans = self._timetable.spans(wall_s)
            least = self._deadline.rate_bits_per_s(wall_s, self._left_bytes(), spans)
            rate = min((one for one in (rate, least) if one is not None), default=None)
            self._looks.append(Look(now_s, self._sent_bytes, rate))
            while len(self._looks) > 1 and self._looks[1].at_s <= now_s - METER_S:
                self._looks.popleft()
        self._bucket.set_rate(rate, now_s)

    def _carried(self, now_s: float) -> Rate:
        """What the link carries at most; None if that isn't known."""
        first = self._looks[0] if self._looks else None
        if first is None or now_s - first.at_s < METER_S:
            return None
        rate = (self._sent_bytes - first.sent_bytes) * 8 / (now_s - first.at_s)
        caps = [look.rate_bits_per_s for look in self._looks]
        allowed = min((cap for cap in caps if cap is not None), default=None)
        return rate if allowed is None or rate < HELD_BACK * allowed else None
