"""The run directory's contents, gathered while the run goes on and written at its end.

`results/FORMAT.md` documents every field.
"""

import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from testbed import systems
from testbed.hosts.supervise import run
from testbed.migration import record, summary
from testbed.migration.options import Parameters
from testbed.migration.requests import Request
from testbed.network.calibrate import Calibration
from testbed.network.topology import LINKS
from testbed.workloads import suite

FORMAT = 2
_VERSION_COMMANDS = {
    "nbdkit": ["nbdkit", "--version"],
    "libnbd": ["nbdcopy", "--version"],
    "fio": ["fio", "--version"],
    "tcc": ["tcc", "-v"],
    "e2fsprogs": ["mke2fs", "-V"],
    "qemu": ["qemu-storage-daemon", "--version"],
}


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {"kernel": os.uname().release, "python": platform.python_version()}
    for name, command in _VERSION_COMMANDS.items():
        match = re.search(r"\d+\.[\d.]*\d", run(command))
        found[name] = match[0] if match else "unknown"
    return found


class Results:
    """What is known about the run so far."""

    def __init__(self, parameters: Parameters, clock: str) -> None:
        self.parameters = parameters
        self.clock = clock
        self.recorder = record.Recorder()
        self.sampler = record.Sampler(self.recorder)
        self.calibration: Calibration | None = None
        self.outcome, self.reason = "failed", "the run was not concluded"
        self.memory: tuple[int, float] | None = None  # bytes and seconds of the memory copy
        self.downtime_s: float | None = None
        self.handover_s: float | None = None
        self.allocated_bytes: int | None = None
        self.done = suite.Log()
        self.requests: list[Request] = []
        self._before: record.Status | None = None
        self._final: record.Status | None = None
        self._complete_s: float | None = None

    def conclude(self, outcome: str, reason: str | None) -> None:
        """The outcome, as results and live output show it."""
        self.outcome, self.reason = outcome, reason or ""
        if reason is not None:
            self.recorder.event("failed", reason=reason)
        self.recorder.event("finished", outcome=outcome)

    def background_started(self, status: record.Status | None) -> None:
        self._before = status

    def relocated(self, status: record.Status | None, complete_s: float) -> None:
        self._final, self._complete_s = status, complete_s

    # -- figures ---------------------------------------------------------------------------

    def _all_ios(self) -> list[tuple[float, str, float, str]]:
        """(run clock, kind, latency, offset) of every logged I/O, ordered."""
        clock = self.recorder.on_run_clock
        ios = self.done.ios
        return sorted((clock(io.time_s), io.kind, io.latency_s, str(io.offset_bytes)) for io in ios)

    def _all_work(self) -> list[tuple[str, float, float, tuple[float, ...]]]:
        """(kind, start, end, parts) of every unit of work on the run's clock, ordered by end."""
        clock = self.recorder.on_run_clock
        units = self.done.work
        rows = [(one.kind, clock(one.start_s), clock(one.end_s), one.parts_s) for one in units]
        return sorted(rows, key=lambda row: (row[2], row[0]))

    def _background_figures(self, times_s: dict[str, float]) -> dict[str, Any] | None:
        started_s = times_s.get("background-started")
        if self._complete_s is None or self.calibration is None or started_s is None:
            return None
        copy_s = self.recorder.on_run_clock(self._complete_s) - started_s
        figures: dict[str, Any] = {"start_s": started_s, "copy_s": round(copy_s, 6)}
        if self._before is None or self._final is None:
            return figures
        gained = {
            key: self._final[key] - self._before[key]
            for key in ("background_bytes", "on_demand_bytes")
        }
        both = sum(gained.values())
        nbdcopy = self.calibration.nbdcopy
        rates = {"": gained["background_bytes"] * 8 / copy_s, "pipe_": both * 8 / copy_s}
        figures["bytes"] = gained["background_bytes"]
        for prefix, rate in rates.items():
            figures[f"{prefix}bits_per_s"] = round(rate)
            name = "ratio_to_nbdcopy" if not prefix else "pipe_ratio_to_nbdcopy"
            figures[name] = round(rate / nbdcopy["bits_per_s"], 4) if nbdcopy else None
        return figures

    def _moved_bytes(self, link: str, start_s: float) -> tuple[int, int]:
        """(rx, tx) of a link from `start_s` on the run's clock to the end."""
        clock = self.recorder.on_run_clock
        later = [counters[link] for at_s, counters in self.sampler.links if clock(at_s) >= start_s]
        if not later:
            return 0, 0
        return later[-1][0] - later[0][0], later[-1][1] - later[0][1]

    def _summary(self, times_s: dict[str, float], phases: summary.Phases) -> dict[str, Any]:
        switch_s = times_s.get("switch-started", 0.0)
        relocates = systems.SYSTEMS[self.parameters.system].relocates
        received, sent = self._moved_bytes(*(("C", 0.0) if relocates else ("B", switch_s)))
        memory = None
        if self.memory is not None:
            size_bytes, copy_s = self.memory
            memory = {
                "bytes": size_bytes,
                "copy_s": round(copy_s, 6),
                "bits_per_s": round(size_bytes * 8 / copy_s),
            }
        relocation_s = None
        if self._complete_s is not None:
            relocation_s = round(self.recorder.on_run_clock(self._complete_s) - switch_s, 6)
        over = received / self.allocated_bytes if relocates and self.allocated_bytes else None
        final = self._final or {}
        ledger = [io.latency_s for io in self.done.ios if io.kind == "ledger"]
        return {
            "downtime_s": None if self.downtime_s is None else round(self.downtime_s, 6),
            "handover_s": None if self.handover_s is None else round(self.handover_s, 6),
            "move_s": times_s.get("move-started"),
            "switch_s": times_s.get("switch-started"),
            "relocation_s": relocation_s,
            "background": self._background_figures(times_s),
            "allocated_bytes": self.allocated_bytes,
            "fetched_bytes": {
                name: final.get(f"{name}_bytes") for name in ("on_demand", "background", "hole")
            },
            "wan_bytes": {
                "disk": received + sent,
                "memory": sum(self._moved_bytes("memory", 0.0)),
            },
            "wan_disk_rx_over_allocated": None if over is None else round(over, 6),
            "memory_copy": memory,
            "latency": summary.latency((io[:3] for io in self._all_ios()), phases),
            "work": summary.work((unit[:3] for unit in self._all_work()), phases),
            "ledger": {"acknowledged": len(ledger), "max_s": max(ledger, default=None)},
        }

    # -- the directory ---------------------------------------------------------------------

    def write(self, out: Path) -> None:
        """Writes the run directory, run.json last."""
        times_s = self.recorder.times_s()
        ended = "workloads-ended" in times_s
        phases = summary.phases(times_s) if ended else {}
        record.write_events(out, self.recorder)
        record.write_samples(out, self.recorder, self.sampler)
        ios = (f"{at:.6f},{kind},{took:.9f},{place}" for at, kind, took, place in self._all_ios())
        record.write_table(out, "latency.csv", "t_s,kind,latency_s,offset_bytes", ios)
        record.write_table(out, "work.csv", "kind,start_s,end_s,parts_s,phase", self._work(phases))
        header = "t_s,kind,offset_bytes,length_bytes"
        record.write_table(out, "requests.csv", header, self._requests())
        record.write_run(
            out,
            {
                "format": FORMAT,
                "clock": self.clock,
                "seed": self.parameters.seed,
                "outcome": self.outcome,
                "reason": self.reason or None,
                "parameters": self.parameters.results(),
                "link": self.parameters.profile.derived(),
                "calibration": None if self.calibration is None else self.calibration.results(),
                "versions": versions(),
                "phases": {name: list(bounds) for name, bounds in phases.items()},
                "checks": self.recorder.checks,
                "summary": self._summary(times_s, phases) if ended else None,
                "links": LINKS,
            },
        )

    def _work(self, phases: summary.Phases) -> Iterable[str]:
        for kind, start_s, end_s, parts_s in self._all_work():
            parts = " ".join(f"{part_s:.6f}" for part_s in parts_s)
            phase = summary.phase_of(end_s, phases) if phases else ""
            yield f"{kind},{start_s:.6f},{end_s:.6f},{parts},{phase}"

    def _requests(self) -> Iterable[str]:
        for one in self.requests:
            time_s = self.recorder.on_run_clock(one.time_s)
            yield f"{time_s:.6f},{one.kind},{one.offset_bytes},{one.length_bytes}"
