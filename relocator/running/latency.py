"""Latency histograms that cost next to nothing: a list of counters, four to each power of two.

A count may be lost when two threads add at the same instant: these are statistics, kept without a
lock on purpose. A percentile is the upper edge of its bucket, at most 25 % above the true value.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

_SUB_BITS = 2
_BUCKETS = 64 << _SUB_BITS
_SMALLEST = (2 << _SUB_BITS) - 1  # up to here a bucket is one nanosecond


class Histogram:
    """Counts of durations in nanoseconds."""

    __slots__ = ("_counts",)

    def __init__(self, other: "Histogram | None" = None) -> None:
        """Empty; or another view of the counts of `other`."""
        self._counts: list[int] = [0] * _BUCKETS if other is None else other._counts

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        shift = (duration_ns | _SMALLEST).bit_length() - 1 - _SUB_BITS
        self._counts[(shift << _SUB_BITS) + (duration_ns >> shift)] += 1

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self._counts)

    def percentile_s(self, percent: float) -> float | None:
        """The duration that `percent` of all don't exceed, in seconds; None if there are none."""
        rank = self.count * percent / 100
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                return _upper_edge_ns(bucket) / 1e9
        return None

    def as_dict(self) -> dict[str, Any]:
        """`count`, `p50_s`, `p99_s`, `p999_s`."""
        return {
            "count": self.count,
            "p50_s": self.percentile_s(50),
            "p99_s": self.percentile_s(99),
            "p999_s": self.percentile_s(99.9),
        }


class Requests:
    """The requests that were answered, by kind; and when the first were since `watch`.

    Who is watched for pays for it: a kind's histogram is exchanged for one that notes the time, and
    back by the first answer. Two answers at the same instant may both be noted: the last one stays.
    """

    READS = ("read_present", "read_absent")
    WRITES = ("write",)

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.by_kind = {kind: Histogram() for kind in (*self.READS, *self.WRITES)}
        self._now = now
        #: seconds since 1970; None before
        self.first_read_at_s: float | None = None
        self.first_write_at_s: float | None = None

    def watch(self) -> None:
        """Begin to wait for the first read and the first write."""
        self.first_read_at_s = self.first_write_at_s = None
        for kind in self.READS:
            self.by_kind[kind] = _Watched(self.by_kind[kind], self._note_read)
        for kind in self.WRITES:
            self.by_kind[kind] = _Watched(self.by_kind[kind], self._note_write)

    def status(self) -> dict[str, Any]:
        """The requests' part of the status object."""
        return {
            "requests": {kind: histogram.as_dict() for kind, histogram in self.by_kind.items()},
            "first_read_at_s": self.first_read_at_s,
            "first_write_at_s": self.first_write_at_s,
        }

    def _note_read(self) -> None:
        self.first_read_at_s = self._now()
        self._unwatch(self.READS)

    def _note_write(self) -> None:
        self.first_write_at_s = self._now()
        self._unwatch(self.WRITES)

    def _unwatch(self, kinds: Iterable[str]) -> None:
        for kind in kinds:
            self.by_kind[kind] = Histogram(self.by_kind[kind])


class _Watched(Histogram):
    """Tells of what it counts."""

    __slots__ = ("_tell",)

    def __init__(self, counts: Histogram, tell: Callable[[], None]) -> None:
        super().__init__(counts)
        self._tell = tell

    def add(self, duration_ns: int) -> None:
        super().add(duration_ns)
        self._tell()


def _upper_edge_ns(bucket: int) -> int:
    """The largest duration that falls into `bucket`."""
    span = 1 << _SUB_BITS
    if bucket < 2 * span:
        return bucket
    shift = (bucket >> _SUB_BITS) - 1
    return (((bucket & (span - 1)) + span + 1) << shift) - 1
