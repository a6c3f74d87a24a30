"""What one run is measured by. Pure: a `Run` in, a number out; None: never, or can't be said.

docs/metrics.md says in words how each is computed and why so. The terms that recur:

- *the move* begins with what is copied ahead of the guest, of whichever system.
- *local* is the guest's own disk before the move, in the same run: the phase `source`.
- *slow* is a read that took more than twice the local 99th percentile.
- an I/O is *due* when the load's rate says so; one that the last one holds up begins later.
- a *miss* is a read that took at least 0.9 round trips: its block was at the other site.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.analysis import series
from experiments.running import trace
from experiments.running.rundir import Run

Array = npt.NDArray[np.float64]

WINDOW_READS = 100  # of which at most one may be slow: their p99 is the second slowest
FEWEST_LOCAL = 50
MISS_RTTS = 0.9
SLOW_TIMES = 2.0
BEGUN_BYTES = 1000  # over link C: somebody connects, and not only asks who has the address
SHORTEST_COPY_S = 0.2  # the byte counters are sampled this often
BIN_S = 1.0


def percentile(values: Array, percent: float) -> float:
    """Nearest rank: the smallest value with at least `percent` % of all at or below it."""
    ordered = np.sort(values)
    return float(ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)])


def ios(run: Run, kind: str, start_s: float, end_s: float) -> pd.DataFrame:
    """I/Os of a kind that ended in start_s <= t < end_s of the run clock, in order."""
    table = run.latency
    inside = (table["kind"] == kind) & (table["t_s"] >= start_s) & (table["t_s"] < end_s)
    return table[inside].sort_values("t_s", kind="stable")


def copies_ahead(run: Run) -> bool:
    """Whether the relocator copied the disk before the event `move-started`, as it is prepared."""
    settings = run.parameters.get("settings") or {}
    return settings.get("preseed", "no") != "no" and run.time_of("copy-first-started") is None


def move_s(run: Run) -> float:
    """When the move began, on the run clock.

    Where the disk was copied ahead, that is when the copy's connections began, as a mirror's are
    within its move: at the last sample of link C before a kilobyte had come.
    """
    began_s = float(run.summary["move_s"])
    if not copies_ahead(run):
        return began_s
    rows = run.links[(run.links["link"] == "C") & (run.links["t_s"] <= began_s)]
    brought = rows["rx_bytes"] - rows["rx_bytes"].min()
    if not brought.max() > BEGUN_BYTES:
        return began_s
    return float(rows["t_s"][brought <= BEGUN_BYTES].max())


def phases(run: Run) -> Mapping[str, Sequence[float]]:
    """The run's phases; what is copied ahead is `pre-copy`, not `source`, of whichever system."""
    found = run.document["phases"]
    if not run.moves or not copies_ahead(run):
        return found
    start_s, end_s = found["source"]
    return {**found, "source": (start_s, move_s(run)), "pre-copy": (move_s(run), end_s)}


def local_p99_s(run: Run) -> float | None:
    """99th percentile of the reads before the move."""
    start_s, end_s = phases(run)["source"]
    values = ios(run, "read", start_s, end_s)["latency_s"].to_numpy(float)
    return percentile(values, 99) if len(values) >= FEWEST_LOCAL else None


def switch_done_s(run: Run) -> float:
    """When the guest went on at the destination, on the run clock."""
    done = run.time_of("switch-done")
    return run.switch_s if done is None else done


def complete_s(run: Run) -> float | None:
    """When the source was no longer needed, on the run clock; None: not within the observation."""
    after = run.independent_s
    return None if after is None else run.switch_s + after


def from_move_s(run: Run) -> float | None:
    """From the move's start until the source was no longer needed."""
    done_s = complete_s(run)
    return None if done_s is None else done_s - move_s(run)


def recovered_s(run: Run) -> float | None:
    """From the switch until the read p99 is within twice the local one, for good."""
    local = local_p99_s(run)
    reads = ios(run, "read", switch_done_s(run), math.inf)
    if local is None or len(reads) < WINDOW_READS:
        return None
    slow = (reads["latency_s"].to_numpy(float) > SLOW_TIMES * local).astype(int)
    counted = np.concatenate([[0], np.cumsum(slow)])
    bad = np.flatnonzero(counted[WINDOW_READS:] - counted[:-WINDOW_READS] > 1)
    first = int(bad[-1]) + 1 if len(bad) else 0
    if first > len(reads) - WINDOW_READS:
        return None
    return float(reads["t_s"].iloc[first] - run.switch_s)


def slow_until_s(run: Run) -> float | None:
    """From the switch until, at least, reads were not as before; 0 if they always were.

    It is known where too few reads were left to show since when they are: of two slow ones within
    a window the last first.
    """
    local = local_p99_s(run)
    if local is None:
        return None
    reads = ios(run, "read", switch_done_s(run), math.inf)
    slow = np.flatnonzero(reads["latency_s"].to_numpy(float) > SLOW_TIMES * local)
    close = np.flatnonzero(np.diff(slow) < WINDOW_READS)
    return float(reads["t_s"].iloc[slow[close[-1]]] - run.switch_s) if len(close) else 0.0


def during(run: Run, kind: str) -> Array:
    """Latencies of the I/Os that were under way from the move's start until independence."""
    start_s = move_s(run)
    done_s = complete_s(run)
    end_s = run.end_s if done_s is None else done_s
    table = run.latency[run.latency["kind"] == kind]
    began_s = table["t_s"] - table["latency_s"]
    inside = (table["t_s"] >= start_s) & (began_s < end_s)
    return table[inside]["latency_s"].to_numpy(float)


def paced_at(run: Run, kind: str) -> float | None:
    """I/Os of a kind a second, where the load has a fixed rate (`mixed`) and is all there is."""
    asked = run.parameters
    loads = asked.get("workloads") or ()
    mixed = "mixed" in loads and not any(load.startswith("fio:") for load in loads)
    return asked.get(f"{kind}_iops") if mixed and asked.get("guest", "dm") == "dm" else None


def since_due(run: Run, kind: str) -> Array | None:
    """What each I/O that was due from the move's start until independence would have taken then.

    The load keeps its rate by catching up: one that takes seconds delays those after it, which then
    take little each. They are due at fixed intervals from the first on, in their order, and one
    takes what is left of the one that was under way when it was due, and its own latency; not the
    others' that were waiting as well. None where the rate is not known.
    """
    per_s = paced_at(run, kind)
    table = run.latency[run.latency["kind"] == kind]
    if not per_s or table.empty:
        return None
    end_s, latency_s = (table[name].to_numpy(float) for name in ("t_s", "latency_s"))
    order = np.argsort(end_s - latency_s, kind="stable")
    end_s, latency_s = end_s[order], latency_s[order]
    began_s = end_s - latency_s
    due_s = np.arange(len(order)) / per_s
    due_s += (began_s - due_s).min()
    before = np.minimum(np.searchsorted(began_s, due_s, side="right"), np.arange(len(order))) - 1
    left_s = np.where(before >= 0, np.maximum(end_s[before] - due_s, 0.0), 0.0)
    took_s = left_s + latency_s
    done_s = complete_s(run)
    until_s = run.end_s if done_s is None else done_s
    return took_s[(due_s + took_s >= move_s(run)) & (due_s < until_s)]


def misses(run: Run) -> pd.DataFrame | None:
    """Reads after the switch: t_s since the switch, latency_s, miss (bool); None if it can't be
    told.

    It can be told where the round trip is well above what a local read takes.
    """
    local = local_p99_s(run)
    threshold_s = MISS_RTTS * run.calibration["rtt_s"]
    if local is None or threshold_s < SLOW_TIMES * local:
        return None
    reads = ios(run, "read", switch_done_s(run), math.inf)
    table = reads[["t_s", "latency_s"]].assign(miss=reads["latency_s"] >= threshold_s)
    return table.assign(t_s=table["t_s"] - run.switch_s)


def miss_series(run: Run, width_s: float = BIN_S) -> pd.DataFrame | None:
    """t_s (middle of a bin, since the switch) and the misses among the reads that ended in it.

    A bin in which none ended since one waited all through it is all misses; others are left out.
    """
    table = misses(run)
    if table is None:
        return None
    ratio = table["miss"].groupby(np.floor(table["t_s"] / width_s)).mean()
    long = table[table["miss"] & (table["latency_s"] >= width_s)]
    for end_s, latency_s in zip(long["t_s"], long["latency_s"], strict=True):
        first = max(0, math.ceil((end_s - latency_s) / width_s))
        for waited in range(first, math.floor(end_s / width_s)):
            if waited not in ratio.index:
                ratio.loc[waited] = 1.0
    ratio = ratio.sort_index()
    return pd.DataFrame({"t_s": (ratio.index + 0.5) * width_s, "miss_ratio": ratio.to_numpy(float)})


def miss_s(run: Run) -> float | None:
    """The miss ratio summed over time since the switch: as many seconds of nothing but misses."""
    series = miss_series(run)
    if series is None or run.independent_s is None:
        return None
    return float(series["miss_ratio"].sum() * BIN_S)


def copy_bounds(run: Run) -> tuple[float, float] | None:
    """The time in which the disk was copied as a whole, on the run clock."""
    if not run.relocates or complete_s(run) is None:
        return None
    ready_s = run.time_of("destination-started")
    if copies_ahead(run) and ready_s is not None:
        return move_s(run), ready_s
    pairs = (
        ("copy-first-started", "copy-first-done"),
        ("background-started", "relocation-complete"),
        ("switch-started", "switch-done"),
    )
    for start, end in pairs:
        start_s, end_s = run.time_of(start), run.time_of(end)
        if start_s is not None and end_s is not None:
            return start_s, end_s
    return None


def link_use(run: Run) -> float | None:
    """Share of the WAN's rate towards the destination that was used during the copy."""
    bounds = copy_bounds(run)
    if bounds is None or bounds[1] - bounds[0] < SHORTEST_COPY_S:
        return None
    rate = series.link_rate(run, "wan", "rx_bytes", np.array(bounds))[0]
    return float(rate) / run.link_bytes_per_s


def wanted(run: Run) -> list[int]:
    """Offsets of the blocks that the guest needed from the source, in order of their first need."""
    after = run.requests[run.requests["t_s"] >= run.switch_s]
    columns = (after[name].tolist() for name in ("kind", "offset_bytes", "length_bytes"))
    return list(trace.needed(zip(*columns, strict=True)))


def ascending(offsets: list[int]) -> float | None:
    """Rank correlation of order and offset: 1 ascending, 0 no order, -1 descending."""
    if len(offsets) < 2:
        return None
    ranks = np.argsort(np.argsort(np.array(offsets))).astype(float)
    return float(np.corrcoef(np.arange(len(offsets)), ranks)[0, 1])


def progress(run: Run, kind: str, start_s: float, end_s: float) -> float:
    """Units of work that ended between two instants; one under way at the first counts by its share
    inside. One under way at the second does not: of a run that ended there it is not known."""
    rows = run.work[(run.work["kind"] == kind) & (run.work["end_s"] <= end_s)]
    from_s, to_s = rows["start_s"].to_numpy(float), rows["end_s"].to_numpy(float)
    inside = np.clip(to_s - np.maximum(from_s, start_s), 0, None)
    return float((inside / np.maximum(to_s - from_s, 1e-9)).sum())


def lost_work_s(run: Run, stay: Run) -> dict[str, float]:
    """Seconds of work lost from the move's start to the end of both, by kind.

    The kinds are those of work.csv; where there are none, the reads and writes of latency.csv.
    """
    start_s, end_s = _both(run, stay)
    return {
        kind: (1 - done / could) * (end_s - start_s)
        for kind, done, could in _done(run, stay)
        if could > 0 and end_s > start_s
    }


def lost_step_s(run: Run, stay: Run) -> float | None:
    """Seconds of lost work that one unit more or less comes to, where there are fewest."""
    start_s, end_s = _both(run, stay)
    counts = [could for _, _, could in _done(run, stay) if could > 0]
    return (end_s - start_s) / min(counts) if counts and end_s > start_s else None


def _both(run: Run, stay: Run) -> tuple[float, float]:
    """From the move's start to the sooner end of the two."""
    return move_s(run), min(run.end_s, stay.end_s)


def _done(run: Run, stay: Run) -> Iterator[tuple[str, float, float]]:
    start_s, end_s = _both(run, stay)
    kinds = sorted(set(stay.work["kind"]))
    for kind in kinds:
        yield kind, *(progress(one, kind, start_s, end_s) for one in (run, stay))
    if not kinds:
        for kind in ("read", "write"):
            yield kind, *(float(len(ios(one, kind, start_s, end_s))) for one in (run, stay))
