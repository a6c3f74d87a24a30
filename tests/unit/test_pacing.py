"""Pacing against a simulated link: a rate, a round trip, and nothing else."""

import heapq

import pytest

from relocator.copying.pacing import LEAST_BYTES, TokenBucket, Window


def simulate(
    window: Window, rate_bytes_per_s: float, rtt_s: float, for_s: float, from_s: float = 0.0
) -> dict:
    """Send whenever the window is open, over a link that serves one request after another."""
    now_s, link_free_s, delivered = from_s, 0.0, 0
    replies: list = []
    queues: list[float] = []
    while now_s < from_s + for_s:
        while window.open:
            length = window.request_bytes
            sent = window.send(length, now_s)
            start_s = max(link_free_s, now_s + rtt_s / 2)
            queues.append(start_s - now_s - rtt_s / 2)
            link_free_s = start_s + length / rate_bytes_per_s
            heapq.heappush(replies, (link_free_s + rtt_s / 2, delivered, sent))
            delivered += length
        now_s, _, sent = heapq.heappop(replies)
        window.received(sent, now_s)
    tail = queues[len(queues) // 2 :]
    return {
        "longest_queue_s": max(queues),
        "use": delivered / (rate_bytes_per_s * for_s),
        "queue_s": sorted(tail)[len(tail) * 99 // 100],
        "window": window.limit_bytes,
    }


@pytest.mark.parametrize("mbit", [10, 100, 1000])
@pytest.mark.parametrize("rtt_ms", [1, 20, 100, 200])
def test_the_link_is_full_and_its_queue_short(mbit: int, rtt_ms: int) -> None:
    rate = mbit * 1e6 / 8
    seen = simulate(Window(), rate, rtt_ms / 1000, 60.0)
    assert seen["use"] > 0.95
    # A probe may queue a quarter of a round trip; the smallest window is what it is.
    floor_s = LEAST_BYTES / rate
    assert seen["queue_s"] < 0.012 + 0.3 * rtt_ms / 1000 + floor_s


def test_many_connections_shorten_the_start_where_the_link_bears_it() -> None:
    few, many = (simulate(Window(None, lambda n=n: n), 12.5e6, 0.2, 1.0) for n in (1, 12))
    assert many["use"] > 1.5 * few["use"]
    assert many["longest_queue_s"] < 0.1  # half a round trip


def test_many_connections_do_not_fill_a_slow_links_queue() -> None:
    few, many = (simulate(Window(None, lambda n=n: n), 1.25e6, 0.2, 8.0) for n in (1, 12))
    assert many["longest_queue_s"] <= 1.1 * few["longest_queue_s"]


def test_a_longer_route_is_noticed() -> None:
    window = Window()
    simulate(window, 12.5e6, 0.02, 5.0)
    window.in_flight_bytes = 0
    # For up to BASE_S the old base is believed and the window too small; then it is found anew.
    seen = simulate(window, 12.5e6, 0.1, 120.0, from_s=5.0)
    assert seen["use"] > 0.80


def _bursts(
    window: Window, rate_bytes_per_s: float, rtt_s: float, count: int, from_s: float = 0.0
) -> float:
    """Some requests, again and again, that fill neither the link nor the window; when they end."""
    now_s = from_s
    for _ in range(count):
        sent = [window.send(8 << 10, now_s) for _ in range(4)]
        for number, one in enumerate(sent):
            window.received(one, now_s + rtt_s + (number + 1) * (8 << 10) / rate_bytes_per_s)
        now_s += max(3 * rtt_s, 1.0)
    return now_s


@pytest.mark.parametrize("rtt_ms", [20, 100])
def test_what_is_read_ahead_does_not_end_the_start(rtt_ms: int) -> None:
    rate, rtt_s = 12.5e6, rtt_ms / 1000
    window = Window()
    from_s = _bursts(window, rate, rtt_s, 50)
    after, afresh = (simulate(one, rate, rtt_s, 15 * rtt_s, from_s) for one in (window, Window()))
    assert after["use"] >= afresh["use"]


def test_a_copy_with_little_to_do_keeps_what_it_knows_of_the_link() -> None:
    window = Window()
    simulate(window, 12.5e6, 0.02, 5.0)
    window.in_flight_bytes = 0
    before = window.bytes_per_s
    _bursts(window, 12.5e6, 0.02, 2000, from_s=5.0)  # the base latency is measured meanwhile
    assert window.bytes_per_s == before


@pytest.mark.parametrize("rtt_ms", [20, 100, 200])
def test_the_start_doesnt_fill_the_queue(rtt_ms: int) -> None:
    rtt_s = rtt_ms / 1000
    seen = simulate(Window(), 12.5e6, rtt_s, 40 * rtt_s)
    assert seen["longest_queue_s"] < 0.010 + 0.4 * rtt_s


def test_background_leaves_room_for_demand_at_once() -> None:
    window = Window()
    simulate(window, 12.5e6, 0.1, 5.0)
    window.in_flight_bytes = 0
    limit = window.limit_bytes
    waited_for = window.send(limit, 5.0, demand=True)
    window.in_flight_bytes = limit // 4
    assert not window.open
    window.received(waited_for, 5.1)
    assert window.open
    assert window.limit_bytes == limit


def test_demand_that_never_ends_doesnt_stop_the_background_copy() -> None:
    window = Window()
    window.send(1 << 20, 0.0, demand=True)
    seen = simulate(window, 12.5e6, 0.1, 10.0)
    assert seen["use"] > 0.15


def test_a_fixed_window_doesnt_yield() -> None:
    window = Window(64 << 10)
    window.send(1 << 20, 0.0, demand=True)
    assert window.open


def test_a_fixed_window_is_the_operators() -> None:
    window = Window(64 << 10)
    seen = simulate(window, 12.5e6, 0.1, 10.0)
    assert window.limit_bytes == 64 << 10
    assert seen["use"] == pytest.approx((64 << 10) / 0.105 / 12.5e6, rel=0.05)


def test_one_request_may_always_be_sent() -> None:
    assert Window(4096).open
    assert Window(4096).request_bytes == 4096


def test_the_bucket_keeps_its_rate_over_time() -> None:
    bucket = TokenBucket(8e6)  # a million bytes a second
    now_s, taken = 0.0, 0
    while now_s < 10:
        now_s += bucket.delay_s(now_s)
        bucket.take(100_000, now_s)
        taken += 100_000
    assert taken == pytest.approx(10e6, rel=0.03)


def test_no_cap_is_no_wait() -> None:
    bucket = TokenBucket(None)
    bucket.take(1 << 40, 0.0)
    assert bucket.delay_s(0.0) == 0.0


def test_idle_time_is_not_saved_up() -> None:
    bucket = TokenBucket(8e6, burst_s=0.05)
    now_s, taken = 100.0, 0
    while bucket.delay_s(now_s) == 0:
        bucket.take(10_000, now_s)
        taken += 10_000
    assert taken <= 60_000
