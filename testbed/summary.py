"""Figures of a run from its records. Pure: rows in, the `summary` object of run.json out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

Phases = dict[str, tuple[float, float]]


def phases(times_s: dict[str, float]) -> Phases:
    """The phases of results/FORMAT.md from the times of the events that bound them."""
    end_s = times_s["workloads-ended"]
    switch_s = times_s.get("switch-started", end_s)
    memory_s = times_s.get("memory-copy-started")
    result = {"source": (0.0, switch_s if memory_s is None else memory_s)}
    if memory_s is not None:
        result["memory-copy"] = (memory_s, switch_s)
    done_s = times_s.get("switch-done")
    if done_s is None:
        return result
    if "proxy-started" not in times_s:
        return result | {"remote": (done_s, end_s)}
    background_s = times_s.get("background-started", end_s)
    complete_s = times_s.get("relocation-complete", end_s)
    result["on-demand"] = (done_s, background_s)
    if background_s < end_s:
        result["background"] = (background_s, complete_s)
    if complete_s < end_s:
        result["complete"] = (complete_s, end_s)
    return result


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


def cycles(rows: Iterable[tuple[float, float]], known: Phases) -> dict[str, Any]:
    """Compile times by phase from (start, end)."""
    grouped: dict[str, list[float]] = {}
    for start_s, end_s in rows:
        grouped.setdefault(phase_of(end_s, known), []).append(end_s - start_s)
    return {
        phase: {
            "count": len(values),
            "mean_s": round(math.fsum(values) / len(values), 6),
            "min_s": round(min(values), 6),
            "max_s": round(max(values), 6),
        }
        for phase, values in grouped.items()
    }
