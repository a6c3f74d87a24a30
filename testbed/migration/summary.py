"""Figures of a run from its records. Pure: rows in, the `summary` object of run.json out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Phases = dict[str, tuple[float, float]]


def phases(times_s: dict[str, float]) -> Phases:
    """The phases of results/FORMAT.md from the times of the events that bound them."""
    end_s = times_s["workloads-ended"]
    starts = {
        "source": 0.0,
        "pre-copy": times_s.get("copy-first-started"),
        "memory-copy": times_s.get("memory-copy-started"),
    }
    result = _joined(starts, times_s.get("switch-started", end_s))
    done_s = times_s.get("switch-done")
    if done_s is None:
        return result
    if "destination-started" not in times_s:
        return result | {"remote": (done_s, end_s)}
    background_s, complete_s = (
        times_s.get(event) for event in ("background-started", "relocation-complete")
    )
    after = {"on-demand": done_s, "background": background_s, "complete": complete_s}
    if background_s is None and complete_s is not None:
        after = {"complete": done_s}  # all had arrived with the guest
    return result | _joined(after, end_s)


def _joined(starts: Mapping[str, float | None], end_s: float) -> Phases:
    """Each phase lasts until the next one that happened starts, the last one until `end_s`."""
    known = [(name, start) for name, start in starts.items() if start is not None]
    ends = [start for _, start in known[1:]] + [end_s]
    return {name: (start, end) for (name, start), end in zip(known, ends, strict=True)}


def phase_of(time_s: float, known: Phases) -> str:
    """The phase that had started last."""
    name = next(iter(known))
    for candidate, (start_s, _) in known.items():
        if start_s <= time_s:
            name = candidate
    return name


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Nearest rank: the smallest value with at least `fraction` of all at or below it."""
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def distribution(values: Iterable[float]) -> dict[str, float | int]:
    """Count, mean, percentiles and maximum of latencies."""
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "mean_s": round(math.fsum(ordered) / len(ordered), 9),
        "p50_s": percentile(ordered, 0.50),
        "p90_s": percentile(ordered, 0.90),
        "p99_s": percentile(ordered, 0.99),
        "max_s": ordered[-1],
    }


def latency(ios: Iterable[tuple[float, str, float]], known: Phases) -> dict[str, Any]:
    """Distributions by phase and kind from (end, kind, latency)."""
    grouped: dict[str, dict[str, list[float]]] = {}
    for time_s, kind, latency_s in ios:
        phase = grouped.setdefault(phase_of(time_s, known), {})
        phase.setdefault(kind, []).append(latency_s)
    return {
        phase: {kind: distribution(values) for kind, values in kinds.items()}
        for phase, kinds in grouped.items()
    }


def work(units: Iterable[tuple[str, float, float]], known: Phases) -> dict[str, Any]:
    """Durations of units of work by phase and kind from (kind, start, end)."""
    grouped: dict[str, dict[str, list[float]]] = {}
    for kind, start_s, end_s in units:
        kinds = grouped.setdefault(phase_of(end_s, known), {})
        kinds.setdefault(kind, []).append(end_s - start_s)
    return {
        phase: {kind: _durations(values) for kind, values in kinds.items()}
        for phase, kinds in grouped.items()
    }


def _durations(values: Sequence[float]) -> dict[str, float | int]:
    return {
        "count": len(values),
        "mean_s": round(math.fsum(values) / len(values), 6),
        "min_s": round(min(values), 6),
        "max_s": round(max(values), 6),
    }
