"""The run directory's contents, gathered while the run goes on and written at its end.

`results/FORMAT.md` documents every field.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from testbed import record, summary
from testbed.calibrate import Calibration
from testbed.options import Parameters
from testbed.supervise import run
from testbed.topology import LINKS
from testbed.workloads import fio, ledger

FORMAT = 1
_VERSION_COMMANDS = {
    "nbdkit": ["nbdkit", "--version"],
    "libnbd": ["nbdcopy", "--version"],
    "fio": ["fio", "--version"],
    "tcc": ["tcc", "-v"],
    "e2fsprogs": ["mke2fs", "-V"],
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
        self.memory_copy_s: float | None = None
        self.downtime_s: float | None = None
        self.handover_s: float | None = None
        self.allocated_bytes: int | None = None
        self.acknowledged: list[ledger.Acknowledged] = []
        self._ios: list[fio.Io] = []
        self._cycles: list[tuple[float, ...]] = []
        self._background: dict[str, Any] | None = None
        self._before: record.Status = {}
        self._final: record.Status = {}
        self._complete_s: float | None = None

    def conclude(self, outcome: str, reason: str | None) -> None:
        """The outcome, as results and live output show it."""
        self.outcome, self.reason = outcome, reason or ""
        if reason is not None:
            self.recorder.event("failed", reason=reason)
        self.recorder.event("finished", outcome=outcome)

    def background_started(self, status: record.Status) -> None:
        self._before = status

    def relocated(self, status: record.Status, complete_s: float) -> None:
        self._final, self._complete_s = status, complete_s

    def collect(self, logs: Path) -> None:
        """Reads the workloads' logs."""
        self._ios = fio.read_logs(logs)
        self.acknowledged = ledger.parse_log((logs / "ledger.acks").read_text().splitlines())
        for line in (logs / "compile.cycles").read_text().splitlines():
            self._cycles.append(tuple(float(part) for part in line.split(",")))

    # -- figures ---------------------------------------------------------------------------

    def _all_ios(self) -> list[tuple[float, str, float, str]]:
        """(run clock, kind, latency, offset) of every logged I/O, ordered."""
        clock = self.recorder.on_run_clock
        rows = [(clock(io.time_s), io.kind, io.latency_s, str(io.offset_bytes)) for io in self._ios]
        rows += [
            (clock(one.time_s), "ledger", one.latency_s, str(one.slot * ledger.RECORD_BYTES))
            for one in self.acknowledged
        ]
        return sorted(rows)

    def _background_figures(self, times_s: dict[str, float]) -> dict[str, Any] | None:
        if self._complete_s is None or self.calibration is None:
            return None
        copy_s = self.recorder.on_run_clock(self._complete_s) - times_s["background-started"]
        gained = {
            key: self._final[key] - self._before[key]
            for key in ("background_bytes", "on_demand_bytes")
        }
        both = sum(gained.values())
        assert self.calibration.nbdcopy is not None
        ceiling = self.calibration.nbdcopy["bits_per_s"]
        rates = {"": gained["background_bytes"] * 8 / copy_s, "pipe_": both * 8 / copy_s}
        figures: dict[str, Any] = {
            "start_s": times_s["background-started"],
            "copy_s": round(copy_s, 6),
            "bytes": gained["background_bytes"],
        }
        for prefix, rate in rates.items():
            figures[f"{prefix}bits_per_s"] = round(rate)
            name = "ratio_to_nbdcopy" if not prefix else "pipe_ratio_to_nbdcopy"
            figures[name] = round(rate / ceiling, 4)
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
        relocate = self.parameters.mode == "relocate"
        disk_link = ("C", 0.0) if relocate else ("B", switch_s)
        received, sent = self._moved_bytes(*disk_link)
        ios = self._all_ios()
        memory = None
        if self.memory_copy_s is not None:
            size_bytes = self.parameters.memory_bytes
            memory = {
                "bytes": size_bytes,
                "copy_s": round(self.memory_copy_s, 6),
                "bits_per_s": round(size_bytes * 8 / self.memory_copy_s),
            }
        relocation_s = None
        if self._complete_s is not None:
            relocation_s = round(self.recorder.on_run_clock(self._complete_s) - switch_s, 6)
        over = received / self.allocated_bytes if relocate and self.allocated_bytes else None
        return {
            "downtime_s": None if self.downtime_s is None else round(self.downtime_s, 6),
            "handover_s": None if self.handover_s is None else round(self.handover_s, 6),
            "switch_s": times_s.get("switch-started"),
            "relocation_s": relocation_s,
            "background": self._background_figures(times_s),
            "allocated_bytes": self.allocated_bytes,
            "fetched_bytes": {
                name: self._final.get(f"{name}_bytes")
                for name in ("on_demand", "background", "hole")
            },
            "wan_bytes": {
                "disk": received + sent,
                "memory": sum(self._moved_bytes("memory", 0.0)),
            },
            "wan_disk_rx_over_allocated": None if over is None else round(over, 6),
            "memory_copy": memory,
            "latency": summary.latency((io[:3] for io in ios), phases),
            "compile": summary.cycles(self._cycle_times(), phases),
            "ledger": {
                "acknowledged": len(self.acknowledged),
                "slots": len({one.slot for one in self.acknowledged}),
                "max_s": max((one.latency_s for one in self.acknowledged), default=None),
            },
        }

    def _cycle_times(self) -> Iterable[tuple[float, float]]:
        clock = self.recorder.on_run_clock
        return ((clock(cycle[0]), clock(cycle[3])) for cycle in self._cycles)

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
        header = "cycle,start_s,end_s,unpack_s,compile_s,run_s,phase"
        record.write_table(out, "work.csv", header, self._work_rows(phases))
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

    def _work_rows(self, phases: summary.Phases) -> Iterable[str]:
        clock = self.recorder.on_run_clock
        for number, (start, unpacked, linked, end) in enumerate(self._cycles):
            parts = [clock(start), clock(end), unpacked - start, linked - unpacked, end - linked]
            phase = summary.phase_of(clock(end), phases) if phases else ""
            yield ",".join([str(number), *(f"{part:.6f}" for part in parts), phase])
