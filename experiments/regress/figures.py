"""The figures: pure, from measurements to numbers, each with what it says and where it comes from.

All are better when smaller. `part` is the part of testbed/gauge that measures a figure, `look`
where to look when it moves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.bench.tables import quantile

Measured = dict[str, Any]
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure; `value` takes what its part measured."""

    name: str
    unit: str
    part: str
    value: Callable[[Measured], float]
    look: str


def _cost(kind: str, server: str = "proxy") -> Callable[[Measured], float]:
    def value(measured: Measured) -> float:
        cost = measured["costs"][kind]
        return float(cost[f"{server}_ns"] / cost["count"])

    return value


def _total(link: str, of: Callable[[Measured], float]) -> Callable[[Measured], float]:
    return lambda measured: sum(of(copy) for copy in measured[link]["copies"])


def _a_copy(link: str, of: Callable[[Measured], float]) -> Callable[[Measured], float]:
    total = _total(link, of)
    return lambda measured: total(measured) / len(measured[link]["copies"])


def _each(link: str, of: Callable[[Measured], float], over: str, unit: float = 1) -> Any:
    """A sum over another, of all copies."""
    total, base = _total(link, of), _total(link, lambda copy: copy[over])
    return lambda measured: total(measured) / (base(measured) / unit)


def _latency(link: str, kind: str, fraction: float) -> Callable[[Measured], float]:
    """A quantile of all copies' requests together but each one's first; of reads, of those that
    waited for the source: half a round trip or more."""

    def value(measured: Measured) -> float:
        least_s = measured[link]["rtt_s"] / 2 if kind == "reads" else 0.0
        copies = measured[link]["copies"]
        together = [latency for copy in copies for _, latency in sorted(copy[kind])[1:]]
        return quantile([one for one in together if one >= least_s], fraction) or 0.0

    return value


def _trips(*kinds: str) -> Callable[[Measured], float]:
    """Round trips: the mean of a kind's requests; of several kinds, one after the other."""

    def value(measured: Measured) -> float:
        seconds = [measured["seconds"][kind] for kind in kinds]
        return float(sum(sum(one) / len(one) for one in seconds) / measured["rtt_s"])

    return value


INSTRUCTIONS, TRIPS = "instructions", "round trips"
_MISS = "relocator/copying/hydration.py, claims.py, source/connection.py, store"
_HERE = "relocator/plugin.py, running/disk.py, store"
_COPY = "relocator/copying/pacing.py, copier.py, source/connection.py"


def _of_link(link: str, words: str) -> tuple[Figure, ...]:
    def figure(name: str, unit: str, value: Callable[[Measured], float], look: str) -> Figure:
        return Figure(f"{words}: {name}", unit, "copies", value, look)

    return (
        figure("copy", "s", _a_copy(link, lambda copy: copy["copy_s"]), _COPY),
        figure("read that waits, p50", "s", _latency(link, "reads", 0.5), _COPY),
        figure("read that waits, p99", "s", _latency(link, "reads", 0.99), _COPY),
        figure("write, p50", "s", _latency(link, "writes", 0.5), _HERE),
        figure(
            "bytes over the WAN a byte of the disk",
            "bytes",
            _each(link, lambda copy: copy["received_bytes"], "allocated_bytes"),
            "relocator/copying/hydration.py, holes.py, readahead.py: what is fetched twice",
        ),
        figure(
            "requests to the source a MiB",
            "requests",
            _each(link, lambda copy: copy["source_requests"], "allocated_bytes", MIB),
            "relocator/copying/pacing.py (the size of a request), copier.py, claims.py",
        ),
        figure(
            "instructions a MiB, proxy",
            INSTRUCTIONS,
            _each(link, lambda copy: copy["proxy_ns"], "allocated_bytes", MIB),
            "relocator/source/connection.py (gathering), copying/, pacer.py",
        ),
        figure(
            "instructions a MiB, target",
            INSTRUCTIONS,
            _each(link, lambda copy: copy["target_ns"], "allocated_bytes", MIB),
            "relocator/plugin.py, running/disk.py at the source",
        ),
    )


def _memory(server: str, kind: str) -> Callable[[Measured], float]:
    return _a_copy("near", lambda copy: copy["memory"][server][kind])


def _of_request(kind: str, words: str, look: str, server: str = "proxy") -> Figure:
    return Figure(words, INSTRUCTIONS, "requests", _cost(kind, server), look)


FIGURES = (
    *_of_link("near", "20 ms"),
    *_of_link("far", "100 ms"),
    Figure("memory: proxy, peak", "KiB", "copies", _memory("proxy", "peak"), "relocator/"),
    Figure("memory: proxy, its own", "KiB", "copies", _memory("proxy", "anonymous"), "relocator/"),
    Figure(
        "memory: target, its own", "KiB", "copies", _memory("target", "anonymous"), "relocator/"
    ),
    _of_request("target_read", "instructions: target, a read", _HERE, "target"),
    _of_request("present_read", "instructions: a read of what is here", _HERE),
    _of_request("present_read_16", "instructions: such reads, 16 at once", _HERE),
    _of_request("complete_read", "instructions: a read when all is here", _HERE),
    _of_request("present_write", "instructions: a write of what is here", _HERE),
    _of_request("absent_write", "instructions: a write of an absent block", _MISS),
    _of_request("partial_write", "instructions: a write of half of one", _MISS),
    _of_request("miss", "instructions: a miss", _MISS),
    _of_request("large_miss", "instructions: a miss of 64 KiB", _MISS),
    _of_request("miss", "instructions: target, a miss", _HERE, "target"),
    Figure(
        "round trips: a read in standby",
        TRIPS,
        "misses",
        _trips("standby_read"),
        "relocator/running",
    ),
    Figure(
        "round trips: activate and the first write",
        TRIPS,
        "misses",
        _trips("activate", "first_write"),
        "relocator/running/activation.py, sealing.py, source/remote.py",
    ),
    Figure("round trips: a miss", TRIPS, "misses", _trips("miss"), _MISS),
    Figure("round trips: a miss of 64 KiB", TRIPS, "misses", _trips("large_miss"), _MISS),
    Figure("round trips: a write of half a block", TRIPS, "misses", _trips("partial_write"), _MISS),
    Figure("round trips: a write of a whole one", TRIPS, "misses", _trips("absent_write"), _MISS),
)


def values(measured: Measured) -> dict[str, float]:
    """{figure: its value} of those whose part was measured, to six digits."""
    return {
        one.name: float(f"{one.value(measured[one.part]):.6g}")
        for one in FIGURES
        if one.part in measured
    }
