"""What a run leaves behind: events as they happen, samples, and the run directory at the end.

All times are taken on the monotonic clock and turned into the run's clock (0: the workloads start)
when they are written. Nothing that depends on the host or on the date is written. `run.json` comes
last and appears at once, so that a directory with it is complete.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from testbed.ending import Helper
from testbed.network.topology import link_counters

LINKS_EVERY_S = 0.2
STATUS_EVERY_S = 0.5
PROGRESS_EVERY_S = 5.0

Status = dict[str, Any]
PRESENCE = ("present_blocks", "total_blocks", "on_demand_bytes", "background_bytes", "hole_bytes")


def _shown(name: str, value: Any) -> str:
    """A field as the live output shows it."""
    if name.endswith("bits_per_s"):
        return f"{name.removesuffix('bits_per_s').rstrip('_')} {value / 1e6:.2f} Mbit/s".lstrip()
    if name.endswith("bytes"):
        return f"{name.removesuffix('_bytes')} {value / 2**20:.2f} MiB"
    if name.endswith("_s"):
        return f"{name.removesuffix('_s')} {value:.3f} s"
    return f"{name} {value}"


@dataclass(slots=True)
class Recorder:
    """The run's event log and clock."""

    began_s: float = field(default_factory=time.monotonic)
    zero_s: float | None = None
    events: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)

    def event(self, name: str, /, **fields: Any) -> float:
        """Logs an event now and shows it; returns its time on the monotonic clock."""
        now_s = time.monotonic()
        if name == "workloads-started":
            self.zero_s = now_s
        self.events.append((now_s, name, fields))
        shown = "  ".join(_shown(key, value) for key, value in fields.items())
        self.say(f"{name.replace('-', ' '):<22}{shown}", now_s)
        return now_s

    def say(self, text: str, now_s: float | None = None) -> None:
        """A line of live output, with the run's clock in front."""
        now_s = time.monotonic() if now_s is None else now_s
        if self.zero_s is None:
            stamp = f"prepare {now_s - self.began_s:6.1f} s"
        else:
            stamp = f"    run {now_s - self.zero_s:6.1f} s"
        print(f"{stamp}  {text}".rstrip(), flush=True)

    def check(self, name: str, problems: Iterable[str], good: str) -> bool:
        """Records a check: what is wrong, or the sentence that says that all is well."""
        found = list(problems)
        detail = "; ".join(found[:5]) if found else good
        if len(found) > 5:
            detail += f"; and {len(found) - 5} more"
        result = {"name": name, "ok": not found, "detail": detail}
        self.checks.append(result)
        self.event("check", **result)
        return not found

    def on_run_clock(self, monotonic_s: float) -> float:
        """Seconds since the workloads started (since the program began if they never did)."""
        zero_s = self.began_s if self.zero_s is None else self.zero_s
        return round(monotonic_s - zero_s, 6)

    def times_s(self) -> dict[str, float]:
        """First time of every kind of event on the run's clock."""
        result: dict[str, float] = {}
        for monotonic_s, name, _ in self.events:
            result.setdefault(name, self.on_run_clock(monotonic_s))
        return result


class Sampler(Helper):
    """Reads link counters and the proxy's status in a thread of its own, and shows progress."""

    doing = "sampling"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        #: (time, link -> (received, sent) bytes)
        self.links: list[tuple[float, dict[str, tuple[int, int]]]] = []
        self.presence: list[tuple[float, Status]] = []
        self.status_of: Callable[[], Status] | None = None
        self._cpu = (0, 0)

    def sample_links(self) -> None:
        self.links.append((time.monotonic(), link_counters()))

    def sample_presence(self) -> Status:
        """The proxy's status now, kept; only while there is a proxy."""
        assert self.status_of is not None
        status = self.status_of()
        self.presence.append((time.monotonic(), status))
        return status

    def _busy(self) -> float:
        """Share of the processors' time in use since the last call: a lab that is out of CPU
        measures itself, not the WAN."""
        fields = [int(part) for part in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
        now = (sum(fields[:8]), fields[3] + fields[4])
        total, idle = now[0] - self._cpu[0], now[1] - self._cpu[1]
        self._cpu = now
        return 1 - idle / total if total else 0.0

    def _show_progress(self) -> None:
        back = round(1 / LINKS_EVERY_S)
        busy = self._busy()
        if len(self.links) <= back:
            return
        (then_s, then), (now_s, now) = self.links[-1 - back], self.links[-1]
        mbit = {
            link: (now[link][0] - then[link][0]) * 8e-6 / (now_s - then_s) for link in ("A", "wan")
        }
        text = f"... A {mbit['A']:.1f} Mbit/s  WAN {mbit['wan']:.1f} Mbit/s  CPU {busy:.0%}"
        if self.status_of is not None and self.presence:
            status = self.presence[-1][1]
            text += f"  present {100 * status['present_blocks'] / status['total_blocks']:.1f} %"
            eta_s = status.get("eta_s")
            text += f"  ETA {eta_s:.0f} s" if eta_s else ""
        self.recorder.say(text)

    def work(self) -> None:
        start_s = time.monotonic()
        tick = 0
        every = {LINKS_EVERY_S: 2, STATUS_EVERY_S: 5, PROGRESS_EVERY_S: 50}
        while not self.ending.wait(max(0.0, start_s + tick * 0.1 - time.monotonic())):
            if tick % every[LINKS_EVERY_S] == 0:
                self.sample_links()
            if tick % every[STATUS_EVERY_S] == 0 and self.status_of is not None:
                self.sample_presence()
            if tick % every[PROGRESS_EVERY_S] == 0:
                self._show_progress()
            tick += 1

    def __enter__(self) -> Self:
        self.begin()
        return self


def _write(path: Path, lines: Iterable[str]) -> None:
    """Writes a file so that it is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_events(out: Path, recorder: Recorder) -> None:
    """events.jsonl."""
    _write(
        out / "events.jsonl",
        (
            json.dumps({"t_s": recorder.on_run_clock(at_s), "event": name} | fields, sort_keys=True)
            for at_s, name, fields in recorder.events
        ),
    )


def write_samples(out: Path, recorder: Recorder, sampler: Sampler) -> None:
    """links.csv and presence.csv."""
    rows = ["t_s,link,rx_bytes,tx_bytes"]
    for at_s, counters in sampler.links:
        t_s = recorder.on_run_clock(at_s)
        rows += [f"{t_s:.6f},{link},{rx},{tx}" for link, (rx, tx) in sorted(counters.items())]
    _write(out / "links.csv", rows)
    rows = [",".join(("t_s", *PRESENCE))]
    for at_s, status in sampler.presence:
        values = (str(status[name]) for name in PRESENCE)
        rows.append(",".join((f"{recorder.on_run_clock(at_s):.6f}", *values)))
    _write(out / "presence.csv", rows)


def write_table(out: Path, name: str, header: str, rows: Iterable[str]) -> None:
    """A CSV file of rows that are text already."""
    _write(out / name, [header, *rows])


def write_run(out: Path, run: dict[str, Any]) -> None:
    """run.json, the last file."""
    _write(out / "run.json", [json.dumps(run, indent=1, sort_keys=True)])
