"""From a run's raw tables to what is said about it: rates, windows and the comparison.

Counters in a run are cumulative. A rate over a bin is the difference of the counter, interpolated
at the bin's two edges, over its width: whatever the sampling, no byte is lost or counted twice.

Runs are compared over the same stretches of time, or a longer run would look better for nothing.
`common_windows` lays them out: *before* the memory copy and the switch; the first quarter *after*
the switch; and the last quarter at the *end*, up to the moment when the shortest run stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.running.rundir import FIRST, Run, RunError

Array = npt.NDArray[np.float64]
Runs = Mapping[str, Run]


@dataclass(frozen=True)
class Window:
    """Seconds relative to the switch, `start_s` <= t < `end_s`."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Windows:
    before: Window
    after: Window
    end: Window

    @property
    def whole(self) -> Window:
        """From the switch to the end of the shortest run."""
        return Window(0.0, self.end.end_s)


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a figure for each run (None: never, or not measured)."""

    label: str
    unit: str
    values: Mapping[str, float | None]
    absent: str = "–"
    ranked: bool = True
    note: str = ""

    @property
    def best(self) -> frozenset[str]:
        """The runs within 2 % of the lowest value; none where that is all of them."""
        known = {name: value for name, value in self.values.items() if value is not None}
        if not self.ranked or not known:
            return frozenset()
        lowest = min(known.values())
        best = frozenset(name for name, value in known.items() if value <= lowest * 1.02)
        return best if len(best) < len(self.values) else frozenset()


def rate_bytes_per_s(t_s: Array, cumulative_bytes: Array, edges_s: Array) -> Array:
    """Mean rate in each bin between two `edges_s`, from a cumulative counter sampled at `t_s`.

    Outside the samples the counter is taken to stand still. Shape: len(edges_s) - 1.
    """
    if len(t_s) == 0:
        return np.zeros(len(edges_s) - 1)
    return np.diff(np.interp(edges_s, t_s, cumulative_bytes)) / np.diff(edges_s)


def bins(start_s: float, end_s: float, anchor_s: float, about: int = 240) -> Array:
    """Edges of equal bins within start..end, one of them at `anchor_s`.

    Their width is the smallest round one that gives at most `about` bins.
    """
    span_s = end_s - start_s
    width_s = next((w for w in (0.5, 1.0, 2.0, 5.0, 10.0) if span_s / w <= about), 30.0)
    first = np.ceil((start_s - anchor_s) / width_s)
    last = max(np.floor((end_s - anchor_s) / width_s), first + 1)
    return anchor_s + np.arange(first, last + 1) * width_s


def link_rate(run: Run, link: str, counter: str, edges_s: Array) -> Array:
    """Bytes/s on `link` (`counter`: rx_bytes or tx_bytes); edges on the run clock."""
    rows = run.links[run.links["link"] == link]
    return rate_bytes_per_s(rows["t_s"].to_numpy(float), rows[counter].to_numpy(float), edges_s)


def link_bytes(run: Run, link: str, start_s: float, end_s: float) -> float:
    """Bytes in both directions on `link` between two instants of the run clock."""
    edges = np.array([start_s, end_s])
    both = sum(link_rate(run, link, counter, edges)[0] for counter in ("rx_bytes", "tx_bytes"))
    return float(both * (end_s - start_s))


def wan_throughput(run: Run, edges_s: Array) -> dict[str, Array]:
    """Bytes/s towards the destination by what for, in the order in which they are stacked.

    Link C is one counter; it is divided between on-demand and background copy in the proportion in
    which the proxy says that their bytes arrived in the same bin. Before the background copy starts
    all of it is on-demand copy: the blocks that the guest waits for and what is read ahead of them.
    """
    memory = link_rate(run, "memory", "rx_bytes", edges_s)
    if not run.relocates:
        remote = link_rate(run, "B", "rx_bytes", edges_s)
        return {"memory copy": memory, "remote reads": remote}
    disk = link_rate(run, "C", "rx_bytes", edges_s)
    t_s = run.presence["t_s"].to_numpy(float)
    demand, background = (
        rate_bytes_per_s(t_s, run.presence[column].to_numpy(float), edges_s)
        for column in ("on_demand_bytes", "background_bytes")
    )
    unasked = edges_s[1:] > _background_from_s(run)  # before, what comes is the guest's doing
    share = 1.0 - unasked
    known = unasked & (demand + background > 0)
    np.divide(demand, demand + background, out=share, where=known)
    return {
        "memory copy": memory,
        "on-demand copy": disk * share,
        "background copy": disk * (1 - share),
    }


def _background_from_s(run: Run) -> float:
    """From when on what comes unasked may be the background copy."""
    if run.system in FIRST:
        return float("-inf")
    started = run.time_of("background-started")
    return float("inf") if started is None else started


def present_percent(run: Run) -> tuple[Array, Array]:
    """(seconds on the run clock, blocks present in %), from the switch to the end of the run."""
    t_s = run.presence["t_s"].to_numpy(float)
    percent = (100 * run.presence["present_blocks"] / run.presence["total_blocks"]).to_numpy(float)
    if len(t_s) == 0:
        return t_s, percent
    return np.append(t_s, max(run.end_s, t_s[-1])), np.append(percent, percent[-1])


def present_at(run: Run, since_switch_s: float) -> float:
    """Blocks present in % so long after the switch; 0 where nothing relocates."""
    t_s, percent = present_percent(run)
    if len(t_s) == 0:
        return 0.0
    return float(np.interp(run.switch_s + since_switch_s, t_s, percent))


def latencies(run: Run, kind: str, window: Window | None = None) -> pd.DataFrame:
    """The guest's I/Os of one kind: columns t_s (relative to the switch) and latency_s."""
    rows = run.latency[run.latency["kind"] == kind]
    shifted = pd.DataFrame({"t_s": rows["t_s"] - run.switch_s, "latency_s": rows["latency_s"]})
    if window is None:
        return shifted
    return shifted[(shifted["t_s"] >= window.start_s) & (shifted["t_s"] < window.end_s)]


def rolling_median(ios: pd.DataFrame, width_s: float = 2.0) -> pd.DataFrame:
    """t_s and the median latency_s of the I/Os within `width_s` around it."""
    index = pd.to_timedelta(ios["t_s"].to_numpy(float), unit="s")
    series = pd.Series(ios["latency_s"].to_numpy(float), index=index).sort_index()
    median = series.rolling(pd.Timedelta(seconds=width_s), center=True, min_periods=3).median()
    return pd.DataFrame(
        {"t_s": index.sort_values().total_seconds(), "latency_s": median.to_numpy()}
    )


def missing_block_read_s(run: Run) -> float | None:
    """Median latency of the reads after the switch that had to cross the WAN."""
    reads = latencies(run, "read", Window(0.0, float("inf")))["latency_s"]
    crossed = reads[reads >= run.calibration["rtt_s"] * 0.9]
    return float(crossed.median()) if len(crossed) else None


def percentile_s(run: Run, kind: str, percent: float, window: Window) -> float | None:
    """Latency below which `percent` % of the I/Os in the window lie; None without any."""
    values = latencies(run, kind, window)["latency_s"]
    return float(np.percentile(values, percent)) if len(values) else None


def compile_cycle_s(run: Run, window: Window) -> float | None:
    """Mean time of the compile cycles that ended in the window; None without any."""
    ended = run.work["end_s"] - run.switch_s
    inside = (ended >= window.start_s) & (ended < window.end_s)
    cycles = run.work[inside & (run.work["kind"] == "compile")]
    return float((cycles["end_s"] - cycles["start_s"]).mean()) if len(cycles) else None


def common_windows(runs: Runs) -> Windows:
    """The windows in which these runs can be compared; RunError if one never got that far."""
    last_s = min(run.end_s - run.switch_s for run in runs.values())
    if last_s <= 0:
        raise RunError("a run ended before its switch: there is nothing to compare")
    quiet_s = min(_first(run, "memory-copy-started", "switch-started") for run in runs.values())
    first_s = max(-run.switch_s for run in runs.values())
    return Windows(
        before=Window(first_s, quiet_s),
        after=Window(0.0, last_s / 4),
        end=Window(last_s * 3 / 4, last_s),
    )


def _first(run: Run, *events: str) -> float:
    """When the first of `events` that happened did, relative to the switch."""
    times = [t_s for event in events if (t_s := run.time_of(event)) is not None]
    return min(times, default=run.switch_s) - run.switch_s


def wan_disk_bytes(run: Run, window: Window) -> float:
    """Bytes both ways over the WAN for the disk, headers included, in a window after the switch."""
    link = "C" if run.relocates else "B"
    return link_bytes(run, link, run.switch_s + window.start_s, run.switch_s + window.end_s)


def comparison(runs: Runs, windows: Windows) -> list[Row]:
    """The table: every row is better when lower."""
    stretches = (
        ("before the switch", windows.before),
        ("after the switch", windows.after),
        ("at the end", windows.end),
    )
    rows = []
    for kind, percent in (("read", 50), ("read", 99), ("write", 99)):
        for when, window in stretches:
            values = {n: percentile_s(run, kind, percent, window) for n, run in runs.items()}
            label = f"{kind.capitalize()} latency p{percent}, {when}"
            rows.append(Row(label, "ms", values, ranked=window is not windows.before))
    for when, window in (*stretches[:1], ("after the switch (all)", windows.whole), stretches[2]):
        values = {name: compile_cycle_s(run, window) for name, run in runs.items()}
        ranked = window is not windows.before
        rows.append(Row(f"Compile cycle, {when}", "s", values, ranked=ranked))
    downtime = {name: run.summary["downtime_s"] for name, run in runs.items()}
    independent = {name: run.independent_s for name, run in runs.items()}
    sent = {name: wan_disk_bytes(run, windows.whole) for name, run in runs.items()}
    growing = ", ".join(name for name, value in independent.items() if value is None)
    note = f"still growing: {growing}" if growing else ""
    return [
        *rows,
        Row("Downtime at the switch", "ms", downtime),
        Row("Switch until independent of the source", "s", independent, absent="never"),
        Row("Over the WAN for the disk", "MB", sent, ranked=False, note=note),
    ]


def background_speed(runs: Runs) -> dict[str, Any] | None:
    """Background copy against nbdcopy in the same run, for the first run that had one."""
    for name, run in runs.items():
        copy = run.summary["background"]
        measured = copy is not None and copy.get("ratio_to_nbdcopy") is not None
        if measured and run.independent_s is not None:
            return {
                "run": name,
                "background_bits_per_s": copy["bits_per_s"],
                "pipe_bits_per_s": copy["pipe_bits_per_s"],
                "nbdcopy_bits_per_s": run.calibration["nbdcopy"]["bits_per_s"],
                "ratio": copy["ratio_to_nbdcopy"],
                "pipe_ratio": copy["pipe_ratio_to_nbdcopy"],
            }
    return None


def results(runs: Runs, windows: Windows, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that is said about the runs, as one JSON object (floats to nine places)."""
    document = {
        "windows": {
            "before": asdict(windows.before),
            "after": asdict(windows.after),
            "end": asdict(windows.end),
        },
        "background_speed": background_speed(runs),
        "table": [
            {"label": row.label, "values": dict(row.values), "best": sorted(row.best)}
            for row in rows
        ],
        "runs": {name: _run_results(run, windows) for name, run in runs.items()},
    }
    return _rounded(document)


def _run_results(run: Run, windows: Windows) -> dict[str, Any]:
    return {
        "parameters": run.parameters,
        "calibration": run.calibration,
        "clock": run.document["clock"],
        "seed": run.document["seed"],
        "phases": run.document["phases"],
        "summary": run.summary,
        "checks": run.checks,
        "missing_block_read_s": missing_block_read_s(run),
        "present_percent_at_end": present_at(run, windows.whole.end_s),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
