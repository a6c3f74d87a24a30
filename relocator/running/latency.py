"""Latency histograms that cost next to nothing: a list of counters, four to each power of two.

A count may be lost when two threads add at the same instant: these are statistics, kept without a
lock on purpose. A percentile is the upper edge of its bucket, at most 25 % above the true value.
"""

from typing import Any

_SUB_BITS = 2
_BUCKETS = 64 << _SUB_BITS


class Histogram:
    """Counts of durations in nanoseconds."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        shift = max(duration_ns.bit_length() - 1 - _SUB_BITS, 0)
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


def _upper_edge_ns(bucket: int) -> int:
    """The largest duration that falls into `bucket`."""
    span = 1 << _SUB_BITS
    if bucket < 2 * span:
        return bucket
    shift = (bucket >> _SUB_BITS) - 1
    return (((bucket & (span - 1)) + span + 1) << shift) - 1
