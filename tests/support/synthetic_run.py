"""Makes a run directory of format 1 out of a formula, for tests of what reads run directories.

The shapes are those a real run has (a memory copy that fills the link, a read of an absent block
that costs a round trip, a background copy at the link's rate), so that figures can be looked at;
the figures are nobody's measurement and must never be published.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MB = 1_000_000
BLOCK_BYTES = 4096


@dataclass
class Synthetic:
    """What the run was; without `background` the rest is copied after `duration_s`, for proof."""

    mode: str = "relocate"
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
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @property
    def link_bytes_per_s(self) -> float:
        return self.rate_bits_per_s / 8

    @property
    def switch_done_s(self) -> float:
        return self.switch_at_s + 0.045

    @property
    def background_at_s(self) -> float | None:
        if self.mode == "remote":
            return None
        return self.switch_done_s + self.background_delay_s if self.background else self.duration_s

    @property
    def complete_s(self) -> float | None:
        """Where the background copy has fetched what on-demand copy had not."""
        start = self.background_at_s
        if start is None:
            return None
        left = self.allocated_bytes - self.on_demand_bytes(start)
        return start + left / (self.link_bytes_per_s * 0.94)

    @property
    def ended_s(self) -> float:
        """When the workloads ended."""
        return max(self.duration_s, (self.complete_s or 0.0) + 4.0)

    def on_demand_bytes(self, t_s: float) -> float:
        if self.mode == "remote" or t_s < self.switch_done_s:
            return 0.0
        elapsed = t_s - self.switch_done_s
        return self.allocated_bytes * 0.45 * (1 - math.exp(-elapsed / 30))

    def fetched(self, t_s: float) -> tuple[int, int]:
        """On-demand and background bytes that have arrived at `t_s`."""
        start, end = self.background_at_s, self.complete_s
        if start is None or end is None or t_s <= start:
            return int(self.on_demand_bytes(t_s)), 0
        share = min(1.0, (t_s - start) / (end - start))
        demand = self.on_demand_bytes(start)
        return int(demand), int((self.allocated_bytes - demand) * share)

    def phase(self, t_s: float) -> str:
        for name, (start, end) in self.phases().items():
            if start <= t_s < end:
                return name
        return list(self.phases())[-1]

    def phases(self) -> dict[str, tuple[float, float]]:
        bounds = {
            "source": (0.0, self.memory_copy_at_s),
            "memory-copy": (self.memory_copy_at_s, self.switch_at_s),
        }
        if self.mode == "remote":
            return bounds | {"remote": (self.switch_done_s, self.ended_s)}
        assert self.background_at_s is not None and self.complete_s is not None
        return bounds | {
            "on-demand": (self.switch_done_s, self.background_at_s),
            "background": (self.background_at_s, self.complete_s),
            "complete": (self.complete_s, self.ended_s),
        }


def grid(start_s: float, end_s: float, step_s: float) -> list[float]:
    return [
        round(start_s + i * step_s, 6) for i in range(int((end_s - start_s) / step_s + 1e-9) + 1)
    ]


def links(run: Synthetic) -> Iterable[Sequence[Any]]:
    a_rx = a_tx = b_rx = b_tx = c_rx = c_tx = mem = 0
    before = (0, 0)
    for t in grid(0, run.ended_s, 0.2):
        vm_rx = int(abs(run.random.gauss(260e3, 120e3)) * 0.2)
        vm_tx = int(abs(run.random.gauss(400e3, 300e3)) * 0.2)
        if t < run.switch_at_s:
            a_rx, a_tx = a_rx + vm_rx, a_tx + vm_tx
        else:
            b_rx, b_tx = b_rx + vm_rx, b_tx + vm_tx
        if run.memory_copy_at_s <= t < run.switch_at_s:
            mem += int(run.link_bytes_per_s * 0.2 * 0.98)
        now = run.fetched(t)
        c_rx += int((sum(now) - sum(before)) * 1.045)
        c_tx += (sum(now) - sum(before)) // 60
        before = now
        remote = (b_rx, b_tx) if run.mode == "remote" else (0, 0)
        wan = (c_rx + mem + remote[0], c_tx + mem // 70 + remote[1])
        yield t, "A", a_rx, a_tx
        yield t, "B", b_rx, b_tx
        yield t, "C", c_rx, c_tx
        yield t, "memory", mem, mem // 70
        yield t, "wan", *wan


def presence(run: Synthetic) -> Iterable[Sequence[Any]]:
    if run.mode == "remote":
        return
    end = run.complete_s
    assert end is not None
    total = run.disk_bytes // BLOCK_BYTES
    for t in [*grid(run.switch_done_s, end, 0.5), end]:
        demand, background = run.fetched(t)
        share = min(1.0, (demand + background) / run.allocated_bytes)
        hole = int((run.disk_bytes - run.allocated_bytes) * share) if background else 0
        present = total if t == run.complete_s else (demand + background + hole) // BLOCK_BYTES
        yield round(t, 6), present, total, demand, background, hole


def latency_of(run: Synthetic, kind: str, t_s: float) -> float:
    local = abs(run.random.gauss(0.0004, 0.0001)) + 1e-4
    phase = run.phase(t_s)
    trip = run.rtt_s + abs(run.random.gauss(0.002, 0.0015))
    if kind == "read" and phase == "memory-copy":
        return local * run.random.choice((1, 2, 8))
    if phase == "remote":
        return trip
    if kind == "read" and phase in ("on-demand", "background"):
        present = sum(run.fetched(t_s)) / run.allocated_bytes
        if run.random.random() >= present:
            return trip * (1.3 if phase == "background" else 1)
    return local * (3 if kind != "read" else 1)


def latency(run: Synthetic) -> list[Sequence[Any]]:
    rows = []
    for kind, every_s in (("read", 0.02), ("write", 0.05), ("ledger", 0.5)):
        for t in grid(every_s, run.ended_s, every_s):
            if run.switch_at_s <= t <= run.switch_done_s:
                continue
            offset = run.random.randrange(8192) * BLOCK_BYTES
            rows.append((round(t, 3), kind, f"{latency_of(run, kind, t):.6f}", offset))
    return sorted(rows)


def work(run: Synthetic) -> Iterable[Sequence[Any]]:
    t, cycle = 0.0, 0
    while True:
        far = {"remote": 6.0, "on-demand": 2.2, "background": 1.5}.get(run.phase(t), 0.0)
        length = 1.8 + far + run.random.random() * 0.2
        if t + length > run.ended_s:
            return
        start, t = t, round(t + length, 6)
        parts = round(0.5 + far * 0.3, 6), round(1.1 + far * 0.6, 6), 0.2
        yield cycle, round(start, 6), t, *parts, run.phase(t)
        cycle += 1


def events(run: Synthetic) -> list[dict[str, Any]]:
    named: list[tuple[float | None, str, dict[str, Any]]] = [
        (-14.0, "sites-built", {}),
        (-9.0, "calibrated", {"rtt_s": run.rtt_s * 1.0005}),
        (0.0, "workloads-started", {}),
        (run.memory_copy_at_s, "memory-copy-started", {"bytes": 90 * MB}),
        (run.switch_at_s, "memory-copy-done", {"copy_s": 8.0}),
        (run.switch_at_s, "switch-started", {}),
        (run.switch_done_s, "switch-done", {"downtime_s": 0.045}),
        (run.background_at_s, "background-started", {}),
        (run.complete_s, "relocation-complete", {}),
        (run.complete_s and run.complete_s + 1, "source-off", {}),
        (run.ended_s, "workloads-ended", {}),
        (run.ended_s + 3, "finished", {"outcome": run.outcome}),
    ]
    return [{"t_s": t, "event": name, **more} for t, name, more in named if t is not None]


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
    by_phase: dict[str, Any] = {}
    for name in run.phases():
        here = [row for row in ios if run.phase(row[0]) == name]
        by_phase[name] = {
            kind: percentiles(values)
            for kind in ("read", "write")
            if (values := [float(row[2]) for row in here if row[1] == kind])
        }
    compile_s: dict[str, Any] = {}
    for name in run.phases():
        times = [row[2] - row[1] for row in cycles if row[-1] == name]
        if times:
            mean = sum(times) / len(times)
            compile_s[name] = {
                "count": len(times),
                "mean_s": mean,
                "min_s": min(times),
                "max_s": max(times),
            }
    return {
        "downtime_s": 0.045,
        "switch_s": run.switch_at_s,
        "relocation_s": end - run.switch_at_s if end is not None else None,
        "background": copy,
        "allocated_bytes": run.allocated_bytes,
        "fetched_bytes": {"on_demand": demand, "background": background, "hole": 0},
        "wan_bytes": {"disk": int((demand + background) * 1.06) or 33 * MB, "memory": 98 * MB},
        "wan_disk_rx_over_allocated": (demand + background) * 1.045 / run.allocated_bytes,
        "memory_copy": {"bytes": 90 * MB, "copy_s": 8.0, "bits_per_s": 90e6},
        "latency": by_phase,
        "compile": compile_s,
        "ledger": {"acknowledged": 130, "slots": 256, "max_s": 0.05},
    }


def document(run: Synthetic, totals: Mapping[str, Any]) -> dict[str, Any]:
    way = {"bits_per_s": 95.4e6, "expected_bits_per_s": 95.6e6, "error": -0.002}
    return {
        "format": 1,
        "clock": "virtual",
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
            "mode": run.mode,
            "background": "on" if run.background else "off",
            "order": "sequential",
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
        "phases": {name: list(bounds) for name, bounds in run.phases().items()},
        "checks": [
            {"name": "file-checksums", "ok": run.outcome == "ok", "detail": "412 files"},
            {"name": "e2fsck", "ok": True, "detail": "clean"},
            {"name": "acknowledged-writes", "ok": True, "detail": "130 of 130"},
        ],
        "summary": totals,
        "links": {"A": "", "B": "", "C": "", "memory": "", "wan": ""},
    }


def write_csv(path: Path, header: str, rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)


def write_run(directory: Path, run: Synthetic) -> Path:
    """Writes the run directory `directory` and returns it."""
    directory.mkdir(parents=True)
    ios, cycles = latency(run), list(work(run))
    write_csv(directory / "links.csv", "t_s,link,rx_bytes,tx_bytes", links(run))
    fetched = "on_demand_bytes,background_bytes,hole_bytes"
    write_csv(
        directory / "presence.csv", f"t_s,present_blocks,total_blocks,{fetched}", presence(run)
    )
    write_csv(directory / "latency.csv", "t_s,kind,latency_s,offset_bytes", ios)
    header = "cycle,start_s,end_s,unpack_s,compile_s,run_s,phase"
    write_csv(directory / "work.csv", header, cycles)
    lines = (json.dumps(event, sort_keys=True) for event in events(run))
    (directory / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    written = json.dumps(document(run, summary(run, ios, cycles)), sort_keys=True, indent=1)
    (directory / "run.json").write_text(written + "\n", encoding="utf-8")
    return directory
