"""What the way to a source is like, measured by reading the disk over a connection of its own.

The round trip is the shortest of a few small reads. The rate is what ever larger batches of reads
bring, each in one go, until they take long enough to tell; a link's start (slow start, a cold
cache) is in the first ones, which are left out.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from relocator.errors import UpstreamError
from relocator.source.endpoint import Endpoint
from relocator.source.handles import connected, read, read_many
from relocator.source.remote import Source
from relocator.store.geometry import Extent

MEASURE_S = 3.0
_PIECE_BYTES = 256 << 10
_MOST_BYTES = 32 << 20
_TELLING_S = 0.1
_TRIALS = 5
_IP_MTU = 14  # linux/in.h


def measure(endpoint: Endpoint, now: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """Measure for some `MEASURE_S`; it takes bandwidth from whatever else uses the link.

    Returns `round_trip_s`, `rates_bits_per_s` (several), `mtu_bytes` (None where there is none),
    `encrypted`, `key` (whether one is proven), and `clock_ahead_s`: how far the source's clock is
    ahead of this one, None if the source is not a relocator.

    Raises:
        UpstreamError: the source can't be read.
    """
    with connected(endpoint) as handle:
        size = handle.get_size()
        least = min(4096, size)
        trips = [_timed(lambda: read(handle, 0, least), now) for _ in range(_TRIALS)]
        return {
            "round_trip_s": min(trips),
            "rates_bits_per_s": list(_rates(handle, size, now)),
            "mtu_bytes": None if endpoint.scheme == "ssh" else _mtu(handle.aio_get_fd()),
            "encrypted": bool(handle.get_tls_negotiated()) or endpoint.scheme == "ssh",
            "key": endpoint.key is not None,
            "clock_ahead_s": _clock(endpoint),
        }


def _timed(job: Callable[[], Any], now: Callable[[], float]) -> float:
    began_s = now()
    job()
    return now() - began_s


def _rates(handle: Any, size: int, now: Callable[[], float]) -> Iterator[float]:
    """Rates of batches that took long enough; of the last one, if none did."""
    batch, at, found, rate = _PIECE_BYTES, 0, 0, 0.0
    give_up_s = now() + MEASURE_S
    while size and now() < give_up_s:
        length = min(batch, size)
        at = at if at + length <= size else 0
        pieces = [
            Extent(at + begin, min(_PIECE_BYTES, length - begin))
            for begin in range(0, length, _PIECE_BYTES)
        ]
        took_s = _timed(lambda wanted=pieces: read_many(handle, wanted, 60.0), now)  # type: ignore[misc]
        rate = length * 8 / max(took_s, 1e-9)
        if took_s >= _TELLING_S:
            found += 1
            if found > 1:
                yield rate
        at += length
        batch = batch if took_s >= MEASURE_S / 8 else min(2 * batch, _MOST_BYTES)
    if found < 2:
        yield rate


def _mtu(fd: int) -> int | None:
    """The path's MTU as the kernel knows it by now."""
    with suppress(OSError), socket.socket(fileno=fd) as link:
        try:
            if link.family is socket.AF_INET:
                return int(link.getsockopt(socket.IPPROTO_IP, _IP_MTU))
        finally:
            link.detach()  # it is libnbd's
    return None


def _clock(endpoint: Endpoint) -> float | None:
    """How far the source's clock is ahead; half a round trip is taken off."""
    try:
        before_s = time.time()
        answer = Source(endpoint).identify()
        after_s = time.time()
    except UpstreamError:
        return None
    if answer is None or "time_s" not in answer.fields:
        return None
    return float(answer["time_s"]) - (before_s + after_s) / 2
