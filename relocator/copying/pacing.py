"""How much may be on the link, and how fast. Pure: time is passed in.

`TokenBucket` is the operator's cap on the background copy (`rate=`). `Window` bounds the bytes
asked for and not yet received. Fixed, it is the operator's number (`window=`); otherwise it follows
the link:

    window = delivery rate x (gain x base latency + TARGET_QUEUE_S)

that is, as many bytes as fill the link and a few milliseconds more, so that a demand read finds a
short queue. What demand has on its way counts: background has only what is left of the window, and
yields by as much, at once. A part of the window, `KEPT`, it keeps, or a guest that reads all the
time would stop it; and all of it at the start, when the window isn't known yet.

Delivery rate is the largest of the last rounds (of a round, the mean: one reply that was taken late
makes the next look fast) and base latency the smallest seen (as in BBR: Cardwell et al., 2016). The
small fixed queueing delay is LEDBAT's aim (RFC 6817).

While the rate still grows it is doubled each round, but the window must not hold far more than the
link does. The link's rate shows before the link is full: replies come in trains at that rate, with
gaps between them (packet dispersion: Dovrolis et al., 2001). The fastest *long* train, a fifth of a
round trip, is taken for the link's rate. The fastest *short* one, of a few replies, counts half: a
reply that was taken late can make it look twice as fast as it was. Above both, the rate grows by
`CAUTIOUS_GAIN`.

Once a train has shown that the link bears it, the window is at least what the connections (`lanes`)
carry in their first round trip, and as much again: TCP lets a connection grow only while it is kept
busy (RFC 7661).

A round in which the window was never full says what was asked for, not what the link bears: it can
raise the rate, and neither lowers it nor ends the start. So what is read ahead for a guest, or a
standby's rounds when little is written, leave the window as wide as the link. Nor does a window
count as full while it is shut to measure the base latency.

A base latency is believed for `BASE_S` seconds; then the window shuts for one round trip and it is
measured anew: a changed route is noticed, and our own queue is not mistaken for the link's length.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

TARGET_QUEUE_S = 0.003
BASE_S = 20.0
RATE_ROUNDS = 10
START_BYTES = 64 << 10
LANE_BYTES = 32 << 10
LEAST_BYTES = 32 << 10
MOST_BYTES = 64 << 20
LEAST_REQUEST_BYTES = 8 << 10
MOST_REQUEST_BYTES = 128 << 10
REQUEST_S = 0.003
STARTUP_GAIN = 2.0
CAUTIOUS_GAIN = 1.15
PROBE_GAIN = 1.125
PROBE_ROUNDS = 8
FULL_ROUNDS = 3
START_ROUNDS = 6
KEPT = 0.25
GROWTH = 1.125
SHORT_TRAIN = 8  # replies
LEAST_TRAIN_S = 0.0005
LONG_TRAIN = 0.2  # of a round trip
LONG_TRAIN_S = 0.008  # at least


class TokenBucket:
    """At most `rate_bits_per_s` over time, with bursts of `burst_s` seconds' worth."""

    def __init__(self, rate_bits_per_s: float | None, burst_s: float = 0.05) -> None:
        self.rate_bits_per_s = rate_bits_per_s
        self._burst_s = burst_s
        self._free_at_s = 0.0

    def set_rate(self, rate_bits_per_s: float | None, now_s: float) -> None:
        """Another rate: what was sent too early by the old one is paid for at the new one."""
        if rate_bits_per_s == self.rate_bits_per_s:
            return
        debt_s = self.delay_s(now_s)
        if debt_s and self.rate_bits_per_s and rate_bits_per_s:
            self._free_at_s = now_s + debt_s * self.rate_bits_per_s / rate_bits_per_s
        self.rate_bits_per_s = rate_bits_per_s

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


class Train:
    """How fast bytes arrive at their fastest, in bytes a second, in this round and the last."""

    def __init__(self, replies: int) -> None:
        self._replies = replies
        self._arrivals: deque[tuple[float, int]] = deque()
        self._bytes = 0
        self._rates: deque[float] = deque([0.0], maxlen=2)

    @property
    def rate(self) -> float:
        """Of the fastest train."""
        return max(self._rates)

    def arrived(self, length: int, now_s: float, span_s: float) -> None:
        """Note a reply; a train has some replies and takes at least `span_s`.

        Its first reply says when it began, and isn't counted.
        """
        self._arrivals.append((now_s, length))
        self._bytes += length
        while len(self._arrivals) > self._replies and now_s - self._arrivals[1][0] >= span_s:
            self._bytes -= self._arrivals.popleft()[1]
        began_s, first = self._arrivals[0]
        if len(self._arrivals) >= self._replies and now_s - began_s >= span_s:
            rate = (self._bytes - first) / (now_s - began_s)
            self._rates[-1] = max(self._rates[-1], rate)

    def end_round(self) -> None:
        """Forget the last round but one."""
        self._rates.append(0.0)


class Sent(NamedTuple):
    """A request on its way: what `Window.received` needs to know of it."""

    length: int
    at_s: float
    delivered_bytes: int
    alone: bool
    yielding: bool
    demand: bool


class Window:
    """Bytes in flight, their limit, and the size of a request that suits it."""

    def __init__(
        self, fixed_bytes: int | None = None, lanes: Callable[[], int] = lambda: 1
    ) -> None:
        self.fixed_bytes = fixed_bytes
        self._lanes = lanes
        self.in_flight_bytes = 0
        self.demand_bytes = 0
        self._limit_bytes = START_BYTES
        self._base_s = float("inf")
        self._base_at_s = 0.0
        self._probing_base = False
        self._delivered_bytes = 0
        self._round_ends_bytes = 0
        self._round = 0
        self._samples: list[float] = []
        self._filled = False
        self._round_rates: deque[float] = deque(maxlen=RATE_ROUNDS)
        self._full_rate = 0.0
        self._rounds_without_growth = 0
        self._short = Train(SHORT_TRAIN)
        self._long = Train(2)

    @property
    def limit_bytes(self) -> int:
        """The window now."""
        if self.fixed_bytes is not None:
            return self.fixed_bytes
        return LEAST_REQUEST_BYTES if self._probing_base else self._limit_bytes

    @property
    def round_trip_bytes(self) -> int | None:
        """Delivery rate x base latency; None as long as nothing was measured."""
        return int(self._rate * self._base_s) if self._round_rates else None

    @property
    def bytes_per_s(self) -> float:
        """The delivery rate."""
        return self._rate

    @property
    def request_bytes(self) -> int:
        """A request's size: several fit into the window, and none delays a demand read for long."""
        few_ms = int(self._rate * REQUEST_S)
        size = max(LEAST_REQUEST_BYTES, min(MOST_REQUEST_BYTES, self.limit_bytes // 4, few_ms))
        return min(1 << (size.bit_length() - 1), self.limit_bytes)

    @property
    def piece_bytes(self) -> int:
        """The most of a fetch ahead of a reader: of the first rounds' window a part only."""
        return self.request_bytes if self._round < START_ROUNDS else MOST_REQUEST_BYTES

    @property
    def open(self) -> bool:
        """Whether another background request may be sent.

        The last one may stick out: were it held back until it fits, the window would on average
        be used short of half a request, and the rate measured with it would shrink it further.
        A fixed window is background's alone.
        """
        return self.in_flight_bytes + self._yielded_bytes < self.limit_bytes

    @property
    def _yielded_bytes(self) -> int:
        """How much of the window demand has."""
        if self.fixed_bytes is not None or self._starting:
            return 0
        return min(self.demand_bytes, int(self.limit_bytes * (1 - KEPT)))

    def send(self, length: int, now_s: float, *, demand: bool = False) -> Sent:
        """Note a request of `length` bytes."""
        alone = self.in_flight_bytes == 0
        yielding = self._yielded_bytes > self.limit_bytes * KEPT
        if demand:
            self.demand_bytes += length
        else:
            self.in_flight_bytes += length
            self._filled |= not self.open and not self._probing_base
        return Sent(length, now_s, self._delivered_bytes, alone, yielding, demand)

    def lost(self, sent: Sent) -> None:
        """A request ended without its data."""
        if sent.demand:
            self.demand_bytes -= sent.length
        else:
            self.in_flight_bytes -= sent.length

    def received(self, sent: Sent, now_s: float) -> None:
        """Note a request's reply, and adapt."""
        self.lost(sent)
        self._delivered_bytes += sent.length
        if sent.demand:  # its pace is the guest's, not the link's
            return
        latency_s = max(now_s - sent.at_s, 1e-6)
        self._measure_base(sent, latency_s, now_s)
        self._short.arrived(sent.length, now_s, LEAST_TRAIN_S)
        self._long.arrived(sent.length, now_s, max(LONG_TRAIN_S, self._base_s * LONG_TRAIN))
        rate = (self._delivered_bytes - sent.delivered_bytes) / latency_s
        if sent.yielding and rate < self._rate:  # the link may have been idle meanwhile
            return
        self._samples.append(rate)
        if sent.delivered_bytes >= self._round_ends_bytes:
            self._end_round()
        limit = self._aim * self._base_s + self._rate * TARGET_QUEUE_S
        least = START_BYTES if self._starting else LEAST_BYTES
        self._limit_bytes = int(min(MOST_BYTES, max(least, limit)))

    def _measure_base(self, sent: Sent, latency_s: float, now_s: float) -> None:
        if latency_s < self._base_s or (self._probing_base and sent.alone):
            if latency_s > self._base_s * 1.25:  # a longer route: find its window anew
                self._full_rate, self._rounds_without_growth = 0.0, 0
            self._base_s, self._base_at_s, self._probing_base = latency_s, now_s, False
        elif now_s - self._base_at_s > BASE_S:
            self._probing_base = True

    def _end_round(self) -> None:
        self._round += 1
        self._round_ends_bytes = self._delivered_bytes
        rate = sum(self._samples) / len(self._samples)
        if self._filled or rate > self._rate:
            self._round_rates.append(rate)
        if rate > self._full_rate * GROWTH:
            self._full_rate, self._rounds_without_growth = rate, 0
        elif self._filled:
            self._rounds_without_growth += 1
        self._samples.clear()
        self._filled = False
        self._short.end_round()
        self._long.end_round()

    @property
    def _starting(self) -> bool:
        """Whether the rate still grows."""
        return self._rounds_without_growth < FULL_ROUNDS

    @property
    def _rate(self) -> float:
        """What is reached, in bytes a second."""
        return max(self._round_rates, default=0.0)

    @property
    def _aim(self) -> float:
        """The rate to send at."""
        if self._starting:
            fastest = max(self._rate, max(self._samples, default=0.0))
            carried = max(CAUTIOUS_GAIN * self._rate, self._long.rate, self._short.rate / 2)
            lanes = min(self._lanes() * LANE_BYTES / self._base_s, self._short.rate / 4)
            return min(max(STARTUP_GAIN * fastest, lanes), carried)
        return self._rate * (PROBE_GAIN if self._round % PROBE_ROUNDS == 0 else 1.0)
