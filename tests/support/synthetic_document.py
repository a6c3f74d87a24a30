"""run.json of a synthetic run (see synthetic_run)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.synthetic_run import Synthetic

MB = 1_000_000


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {f"p{q}_s": ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (50, 90, 99)}
    mean = sum(values) / len(values)
    return {"count": len(values), "mean_s": mean, "max_s": ordered[-1], **at}


def summary(
    run: Synthetic, ios: list[Sequence[Any]], cycles: list[Sequence[Any]]
) -> dict[str, Any]:
    demand, background = run.fetched(run.ended_s)
    start, end = run.background_at_s, run.complete_s
    copy = None
    if start is not None and end is not None:
        speed = background * 8 / (end - start)
        copy = {
            "start_s": start,
            "copy_s": end - start,
            "bytes": background,
            "bits_per_s": speed,
            "ratio_to_nbdcopy": speed / 91.5e6,
            "pipe_bits_per_s": speed * 1.01,
            "pipe_ratio_to_nbdcopy": speed * 1.01 / 91.5e6,
        }
        if run.system != "relocator":
            copy = {"start_s": start, "copy_s": end - start}
    by_phase: dict[str, Any] = {}
    for name in run.phases:
        here = [row for row in ios if run.phase(row[0]) == name]
        by_phase[name] = {
            kind: percentiles(values)
            for kind in ("read", "write")
            if (values := [float(row[2]) for row in here if row[1] == kind])
        }
    units: dict[str, Any] = {}
    for name in run.phases:
        times = [row[2] - row[1] for row in cycles if row[-1] == name]
        if times:
            mean = sum(times) / len(times)
            bounds = {"min_s": min(times), "max_s": max(times)}
            units[name] = {"compile": {"count": len(times), "mean_s": mean, **bounds}}
    moves = run.system != "stay"
    return {
        "downtime_s": run.switch_done_s - run.switch_at_s if moves else None,
        "handover_s": 0.03 if moves else None,
        "move_s": run.move_at_s if moves else None,
        "switch_s": run.switch_at_s if moves else None,
        "relocation_s": end - run.switch_at_s if end is not None else None,
        "background": copy,
        "allocated_bytes": run.allocated_bytes,
        "fetched_bytes": dict.fromkeys(("on_demand", "background", "hole"))
        if run.system != "relocator"
        else {"on_demand": demand, "background": background, "hole": 0},
        "wan_bytes": {"disk": int((demand + background) * 1.06) or 33 * MB, "memory": 98 * MB},
        "wan_disk_rx_over_allocated": (demand + background) * 1.045 / run.allocated_bytes
        if run.relocates
        else None,
        "memory_copy": {"bytes": 90 * MB, "copy_s": 8.0, "bits_per_s": 90e6},
        "latency": by_phase,
        "work": units,
        "ledger": {"acknowledged": 130, "max_s": 0.05},
    }


def document(
    run: Synthetic, ios: list[Sequence[Any]], cycles: list[Sequence[Any]]
) -> dict[str, Any]:
    way = {"bits_per_s": 95.4e6, "expected_bits_per_s": 95.6e6, "error": -0.002}
    return {
        "format": 2,
        "clock": run.clock,
        "seed": run.seed,
        "outcome": run.outcome,
        "reason": None if run.outcome == "ok" else "checksums: 3 files differ",
        "parameters": {
            "rtt_s": run.rtt_s,
            "rate_bits_per_s": run.rate_bits_per_s,
            "loss": 0.0,
            "jitter_s": 0.0,
            "disk_bytes": run.disk_bytes,
            "fill_bytes": run.allocated_bytes,
            "memory_bytes": 90 * MB,
            "system": run.system,
            "settings": run.settings,
            "background": "on" if run.background else "off",
            "congestion": "cubic",
            "events": "",
            "workloads": "mixed,compile",
            "background_delay_s": run.background_delay_s,
            "switch_at_s": run.switch_at_s,
            "duration_s": run.duration_s,
            "tail_s": 20.0,
            "seed": run.seed,
        },
        "link": {"delay_s": run.rtt_s / 2, "queue_bytes": 250_000, "limit_packets": 500},
        "calibration": {
            "rtt_s": run.rtt_s * 1.0005,
            "rtt_expected_s": run.rtt_s,
            "rtt_error": 0.0005,
            "rtt_samples": 19,
            "to_destination": way,
            "to_source": way,
            "tolerance": {"rtt": 0.01, "rate": 0.02},
            "within": True,
            "nbdcopy": {"copy_s": 5.8, "data_bytes": 66 * MB, "bits_per_s": 91.5e6},
        },
        "versions": {"kernel": "6.1.0", "nbdkit": "1.32.5", "libnbd": "1.14.2", "fio": "3.33"},
        "phases": {name: list(bounds) for name, bounds in run.phases.items()},
        "checks": [
            {"name": "file-checksums", "ok": run.outcome == "ok", "detail": "412 files"},
            {"name": "e2fsck", "ok": True, "detail": "clean"},
            {"name": "acknowledged-writes", "ok": True, "detail": "130 of 130"},
        ],
        "summary": summary(run, ios, cycles),
        "links": {"A": "", "B": "", "C": "", "memory": "", "wan": ""},
    }
