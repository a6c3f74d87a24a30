"""How much the background copy may have on the link, and how fast. Pure: time is passed in.

`TokenBucket` is the operator's cap (`rate=`). `Window` bounds the bytes asked for and not yet
received. Fixed, it is the operator's number (`window=`); otherwise it follows the link:

    window = delivery rate x (gain x base latency + TARGET_QUEUE_S)

that is, as many bytes as fill the link and a few milliseconds more, so that a demand read finds a
short queue. Delivery rate is the largest of the last rounds and base latency the smallest seen; the
gain is 2 until the rate stops growing, then 1 with a probe of 1.25 every eighth round (all as in
BBR: Cardwell et al., 2016). The small fixed queueing delay is LEDBAT's aim (RFC 6817). A base
latency is believed for `BASE_S` seconds; then the window shuts for one round trip and it is
measured anew: a changed route is noticed, and our own queue is not mistaken for the link's length.
"""

from collections import deque
from typing import NamedTuple

TARGET_QUEUE_S = 0.004
BASE_S = 20.0
RATE_ROUNDS = 10
START_BYTES = 256 << 10
LEAST_BYTES = 64 << 10
MOST_BYTES = 64 << 20
LEAST_REQUEST_BYTES = 16 << 10
MOST_REQUEST_BYTES = 128 << 10
STARTUP_GAIN = 2.0
PROBE_GAIN = 1.25
PROBE_ROUNDS = 8
FULL_ROUNDS = 3


class TokenBucket:
    """At most `rate_bits_per_s` over time, with bursts of `burst_s` seconds' worth."""

    def __init__(self, rate_bits_per_s: float | None, burst_s: float = 0.05) -> None:
        self.rate_bits_per_s = rate_bits_per_s
        self._burst_s = burst_s
        self._free_at_s = 0.0

    def delay_s(self, now_s: float) -> float:
        """Seconds until something may be sent."""
        if self.rate_bits_per_s is None:
            return 0.0
        return max(0.0, self._free_at_s - now_s)

    def take(self, length: int, now_s: float) -> None:
        """Note that `length` bytes are sent now; later ones pay for them."""
        if self.rate_bits_per_s is not None:
            start_s = max(self._free_at_s, now_s - self._burst_s)
            self._free_at_s = start_s + length * 8 / self.rate_bits_per_s


class Sent(NamedTuple):
    """A request on its way: what `Window.received` needs to know of it."""

    length: int
    at_s: float
    delivered_bytes: int
    alone: bool


class Window:
    """Bytes in flight, their limit, and the size of a request that suits it."""

    def __init__(self, fixed_bytes: int | None = None) -> None:
        self.fixed_bytes = fixed_bytes
        self.in_flight_bytes = 0
        self._limit_bytes = START_BYTES
        self._base_s = float("inf")
        self._base_at_s = 0.0
        self._probing_base = False
        self._delivered_bytes = 0
        self._round_ends_bytes = 0
        self._round = 0
        self._round_rates: deque[float] = deque([0.0], maxlen=RATE_ROUNDS)
        self._full_rate = 0.0
        self._rounds_without_growth = 0

    @property
    def limit_bytes(self) -> int:
        """The window now."""
        if self.fixed_bytes is not None:
            return self.fixed_bytes
        return LEAST_REQUEST_BYTES if self._probing_base else self._limit_bytes

    @property
    def request_bytes(self) -> int:
        """A request's size: several fit into the window, and none delays a demand read for long."""
        size = max(LEAST_REQUEST_BYTES, min(MOST_REQUEST_BYTES, self.limit_bytes // 8))
        return min(1 << (size.bit_length() - 1), self.limit_bytes)

    @property
    def open(self) -> bool:
        """Whether another request may be sent.

        The last one may stick out: were it held back until it fits, the window would on average
        be used short of half a request, and the rate measured with it would shrink it further.
        """
        return self.in_flight_bytes < self.limit_bytes

    def send(self, length: int, now_s: float) -> Sent:
        """Note a request of `length` bytes."""
        sent = Sent(length, now_s, self._delivered_bytes, self.in_flight_bytes == 0)
        self.in_flight_bytes += length
        return sent

    def lost(self, sent: Sent) -> None:
        """A request ended without its data."""
        self.in_flight_bytes -= sent.length

    def received(self, sent: Sent, now_s: float) -> None:
        """Note a request's reply, and adapt."""
        self.in_flight_bytes -= sent.length
        self._delivered_bytes += sent.length
        latency_s = max(now_s - sent.at_s, 1e-6)
        self._measure_base(sent, latency_s, now_s)
        rate = (self._delivered_bytes - sent.delivered_bytes) / latency_s
        self._round_rates[-1] = max(self._round_rates[-1], rate)
        if sent.delivered_bytes >= self._round_ends_bytes:
            self._end_round()
        best = max(self._round_rates)
        limit = best * (self._gain * self._base_s + TARGET_QUEUE_S)
        self._limit_bytes = int(min(MOST_BYTES, max(LEAST_BYTES, limit)))

    def _measure_base(self, sent: Sent, latency_s: float, now_s: float) -> None:
        if latency_s < self._base_s or (self._probing_base and sent.alone):
            if latency_s > self._base_s * PROBE_GAIN:  # a longer route: find its window anew
                self._full_rate, self._rounds_without_growth = 0.0, 0
            self._base_s, self._base_at_s, self._probing_base = latency_s, now_s, False
        elif now_s - self._base_at_s > BASE_S:
            self._probing_base = True

    def _end_round(self) -> None:
        self._round += 1
        self._round_ends_bytes = self._delivered_bytes
        if self._round_rates[-1] > self._full_rate * PROBE_GAIN:
            self._full_rate, self._rounds_without_growth = self._round_rates[-1], 0
        else:
            self._rounds_without_growth += 1
        self._round_rates.append(0.0)

    @property
    def _gain(self) -> float:
        if self._rounds_without_growth < FULL_ROUNDS:
            return STARTUP_GAIN
        return PROBE_GAIN if self._round % PROBE_ROUNDS == 0 else 1.0
