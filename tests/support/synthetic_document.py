"""What a synthetic run was (see synthetic_run), and its run.json."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any

MB = 1_000_000


@dataclass
class Synthetic:
    """What the run was; without `background` the rest is copied after `duration_s`, for proof.

    `speed` is the background copy's share of the link, `hit` how much sooner than by chance the
    blocks come that the guest will read (1: as by chance), `slow` what the guest's local I/O costs
    in times of the usual.
    """

    system: str = "relocator"
    settings: dict[str, str] = field(default_factory=dict)
    background: bool = True
    seed: int = 42
    rtt_s: float = 0.020
    rate_bits_per_s: float = 100e6
    disk_bytes: int = 96 << 20
    allocated_bytes: int = 64 << 20
    memory_copy_at_s: float = 18.0
    switch_at_s: float = 26.0
    background_delay_s: float = 10.0
    duration_s: float = 70.0
    outcome: str = "ok"
    clock: str = "virtual"
    speed: float = 0.94
    hit: float = 1.0
    slow: float = 1.0
    cut: tuple[float, float] | None = None
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    @property
    def link_bytes_per_s(self) -> float:
        return self.rate_bits_per_s / 8

    @property
    def relocates(self) -> bool:
        return self.system not in ("remote", "stay")

    @property
    def first(self) -> bool:
        """The disk is there when the guest is."""
        return self.system in ("mirror", "offline") or self.settings.get("preseed") == "yes"

    @property
    def copy_s(self) -> float:
        return self.allocated_bytes / (self.link_bytes_per_s * self.speed)

    @property
    def move_at_s(self) -> float:
        return self.memory_copy_at_s - (self.copy_s if self.system == "mirror" else 0.0)

    @property
    def switch_done_s(self) -> float:
        return self.switch_at_s + 0.045 + (self.copy_s if self.system == "offline" else 0.0)

    @cached_property
    def background_at_s(self) -> float | None:
        if not self.relocates or self.first:
            return None
        return self.switch_done_s + self.background_delay_s if self.background else self.duration_s

    @cached_property
    def complete_s(self) -> float | None:
        """Where the background copy has fetched what on-demand copy had not."""
        if self.first:
            return self.switch_done_s + 0.01
        start = self.background_at_s
        if start is None:
            return None
        left = self.allocated_bytes - self.on_demand_bytes(start)
        return start + left / (self.link_bytes_per_s * self.speed)

    @cached_property
    def ended_s(self) -> float:
        """When the workloads ended."""
        return max(self.duration_s, (self.complete_s or 0.0) + 4.0)

    def on_demand_bytes(self, t_s: float) -> float:
        if not self.relocates or self.first or t_s < self.switch_done_s:
            return 0.0
        elapsed = t_s - self.switch_done_s
        return self.allocated_bytes * 0.45 * (1 - math.exp(-elapsed / 30))

    def fetched(self, t_s: float) -> tuple[int, int]:
        """On-demand and background bytes that have arrived at `t_s`."""
        start, end = self.background_at_s, self.complete_s
        if self.first:
            return 0, self.allocated_bytes
        if start is None or end is None or t_s <= start:
            return int(self.on_demand_bytes(t_s)), 0
        share = min(1.0, (t_s - start) / (end - start))
        demand = self.on_demand_bytes(start)
        return int(demand), int((self.allocated_bytes - demand) * share)

    def phase(self, t_s: float) -> str:
        for name, (start, end) in self.phases.items():
            if start <= t_s < end:
                return name
        return list(self.phases)[-1]

    @cached_property
    def phases(self) -> dict[str, tuple[float, float]]:
        if self.system == "stay":
            return {"source": (0.0, self.ended_s)}
        bounds = {"source": (0.0, self.move_at_s)}
        if self.system == "mirror":
            bounds["pre-copy"] = (self.move_at_s, self.memory_copy_at_s)
        bounds["memory-copy"] = (self.memory_copy_at_s, self.switch_at_s)
        if self.system == "remote":
            return bounds | {"remote": (self.switch_done_s, self.ended_s)}
        if self.first:
            return bounds | {"complete": (self.switch_done_s, self.ended_s)}
        assert self.background_at_s is not None and self.complete_s is not None
        return bounds | {
            "on-demand": (self.switch_done_s, self.background_at_s),
            "background": (self.background_at_s, self.complete_s),
            "complete": (self.complete_s, self.ended_s),
        }


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
