"""One row a run: everything that is compared, as a table.

    python -m experiments.analysis.metrics RUNS_DIR OUT.csv

Reads every directory below RUNS_DIR that has a run.json and writes OUT.csv (or metrics.csv in OUT,
if that is a directory), ordered by cell. A run that failed or was refused is a row with its outcome
and reason and no figures. Columns and how they are computed: docs/metrics.md.

Exit status: 0 the table is written; 1 a run directory is damaged or there is none.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import experiments
from experiments.analysis import measures
from experiments.running.rundir import Run, RunError, load_run, read_document

IDENTITY = ("cell", "scenario", "axes", "name", "system", "seed", "clock", "outcome", "reason")
CONDITIONS = (
    *("rtt_s", "rate_bits_per_s", "loss", "jitter_s", "congestion", "events", "disk_bytes"),
    *("fill_bytes", "guest", "workloads", "settings", "background", "background_delay_s"),
)
PHASES = (*("source", "pre-copy", "memory-copy", "on-demand", "background", "complete", "remote"),)
KINDS = ("read", "write")
Value = str | int | float | None
Row = dict[str, Value]


@dataclass(frozen=True)
class Place:
    """A run directory, and which cell of which scenario it is."""

    directory: Path
    cell: str
    scenario: str
    axes: Mapping[str, str]
    name: str
    seed: int

    @property
    def partner(self) -> tuple[str, str, int]:
        """What it shares with the run whose guest stayed."""
        return self.scenario, axes_text(self.axes), self.seed


def axes_text(axes: Mapping[str, str]) -> str:
    return ",".join(f"{name}={label}" for name, label in axes.items())


def places(runs: Path) -> list[Place]:
    """Every run below `runs`, by cell: from its cell.json, or else from where it stands."""
    found = (_place(runs, path.parent) for path in runs.rglob("run.json"))
    return sorted(found, key=lambda place: place.cell)


def _place(runs: Path, directory: Path) -> Place:
    path = directory / "cell.json"
    if path.is_file():
        try:
            cell = json.loads(path.read_text(encoding="utf-8"))["cell"]
            known = (cell[key] for key in ("id", "scenario", "axes", "system", "seed"))
            return Place(directory, *known)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RunError(f"{path}: not a cell: {error}") from error
    parts = directory.relative_to(runs).parts
    scenario, *axes = parts[:-2] or ("",)
    pairs = (text.partition("=") for text in ",".join(axes).split(",") if text)
    seed = parts[-1].removeprefix("s")
    return Place(
        directory=directory,
        cell="/".join(parts),
        scenario=scenario,
        axes={name: label for name, _, label in pairs},
        name=parts[-2] if len(parts) > 1 else parts[-1],
        seed=int(seed) if seed.isdigit() else 0,
    )


def table(runs: Path) -> list[Row]:
    """A row for every run below `runs`; RunError if there is none, or one is damaged."""
    found = places(runs)
    if not found:
        raise RunError(f"{runs}: there is no run (run.json) here")
    stays: dict[tuple[str, str, int], Run] = {}
    loaded: list[tuple[Place, dict[str, Any], Run | None]] = []
    for place in found:
        document = read_document(place.directory)
        run = load_run(place.directory) if document["outcome"] == "ok" else None
        if run is not None and run.system == "stay":
            stays[place.partner] = run
        loaded.append((place, document, run))
    return [_row(place, document, run, stays) for place, document, run in loaded]


def _row(
    place: Place,
    document: Mapping[str, Any],
    run: Run | None,
    stays: Mapping[tuple[str, str, int], Run],
) -> Row:
    parameters = document["parameters"] or {}
    row: Row = {
        "cell": place.cell,
        "scenario": place.scenario,
        "axes": axes_text(place.axes),
        "name": place.name,
        "system": parameters.get("system"),
        "seed": place.seed,
        "clock": document["clock"],
        "outcome": document["outcome"],
        "reason": document.get("reason"),
    }
    for key in CONDITIONS:
        value = parameters.get(key)
        row[key] = _plain(value)
    if run is not None:
        row |= _by_phase(run)
        if run.moves:
            row |= {name: measure(run) for name, measure in MEASURES.items()}
            row |= _needs(run)
            row |= _lost(run, stays.get(place.partner))
    return row


def _plain(value: Any) -> Value:
    """A parameter as one cell."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={one}" for key, one in sorted(value.items()))
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _background(key: str) -> Callable[[Run], Value]:
    """A figure of the background copy, unless it was made only as a proof."""

    def read(run: Run) -> Value:
        copy = run.summary["background"] or {}
        return copy.get(key) if run.independent_s is not None else None

    return read


def _summary(key: str) -> Callable[[Run], Value]:
    return lambda run: run.summary[key]


def _wan_over_allocated(run: Run) -> float | None:
    allocated = run.summary["allocated_bytes"]
    return run.summary["wan_bytes"]["disk"] / allocated if allocated and run.relocates else None


def _during(kind: str, percent: float) -> Callable[[Run], Value]:
    def read(run: Run) -> Value:
        values = measures.during(run, kind)
        return measures.percentile(values, percent) if len(values) else None

    return read


def _due(kind: str) -> Callable[[Run], Value]:
    def read(run: Run) -> Value:
        values = measures.since_due(run, kind)
        return None if values is None or not len(values) else measures.percentile(values, 99)

    return read


def _copy_s(run: Run) -> float | None:
    bounds = measures.copy_bounds(run)
    return None if bounds is None else bounds[1] - bounds[0]


def _miss_ratio(run: Run) -> float | None:
    """Until the observation's end or, if that was sooner, until independence."""
    found = measures.misses(run)
    if found is None:
        return None
    until = run.independent_s
    rows = found if until is None else found[found["t_s"] <= until]
    return float(rows["miss"].mean()) if len(rows) else None


#: column -> how it is measured, of runs whose guest moved
MEASURES: dict[str, Callable[[Run], Value]] = {
    "downtime_s": _summary("downtime_s"),
    "handover_s": _summary("handover_s"),
    "relocation_from_move_s": measures.from_move_s,
    "independent_s": lambda run: run.independent_s,
    "recovered_s": measures.recovered_s,
    "slow_until_s": measures.slow_until_s,
    "observed_s": lambda run: run.end_s - run.switch_s,
    "local_read_p99_s": measures.local_p99_s,
    "during_read_p50_s": _during("read", 50),
    "during_read_p99_s": _during("read", 99),
    "during_read_max_s": _during("read", 100),
    "during_write_p99_s": _during("write", 99),
    "due_read_p99_s": _due("read"),
    "due_write_p99_s": _due("write"),
    "during_reads": lambda run: len(measures.during(run, "read")),
    "during_writes": lambda run: len(measures.during(run, "write")),
    "miss_ratio": _miss_ratio,
    "miss_s": measures.miss_s,
    "allocated_bytes": _summary("allocated_bytes"),
    "wan_disk_bytes": lambda run: run.summary["wan_bytes"]["disk"],
    "wan_memory_bytes": lambda run: run.summary["wan_bytes"]["memory"],
    "wan_over_allocated": _wan_over_allocated,
    "copy_s": _copy_s,
    "link_use": measures.link_use,
    "copy_over_nbdcopy": _background("ratio_to_nbdcopy"),
    "pipe_over_nbdcopy": _background("pipe_ratio_to_nbdcopy"),
    "checks": lambda run: len(run.checks),
}


def _needs(run: Run) -> Row:
    """What the guest asked for after the switch, against what was fetched for it."""
    offsets = measures.wanted(run)
    fetched = [run.summary["fetched_bytes"][key] for key in ("on_demand", "background")]
    row: Row = {
        "wanted_bytes": len(offsets) * 4096,
        "first_touch_ascending": measures.ascending(offsets),
    }
    if all(value is not None for value in fetched) and sum(fetched) > 0:
        row["fetched_bytes"] = sum(fetched)
        row["fetched_never_read"] = max(0.0, 1 - len(offsets) * 4096 / sum(fetched))
    return row


def _lost(run: Run, stay: Run | None) -> Row:
    """Lost work; `lost_work_s` is the mean of the kinds."""
    if stay is None:
        return {}
    lost = measures.lost_work_s(run, stay)
    if not lost:
        return {}
    return {
        "lost_work_s": sum(lost.values()) / len(lost),
        "lost_step_s": measures.lost_step_s(run, stay),
        "lost_kinds": ",".join(lost),
    }


def _by_phase(run: Run) -> Row:
    """Percentiles and I/Os a second by kind and phase."""
    row: Row = {}
    phases = measures.phases(run)
    for phase in PHASES:
        if phase not in phases:
            continue
        start_s, end_s = phases[phase]
        end_s = min(end_s, run.end_s)
        for kind in KINDS:
            values = measures.ios(run, kind, start_s, end_s)["latency_s"].to_numpy(float)
            if not len(values) or end_s <= start_s:
                continue
            suffix = phase.replace("-", "_")
            row[f"{kind}_p50_s_{suffix}"] = measures.percentile(values, 50)
            row[f"{kind}_p99_s_{suffix}"] = measures.percentile(values, 99)
            row[f"{kind}_per_s_{suffix}"] = len(values) / (end_s - start_s)
    return row


def columns() -> Iterator[str]:
    """Every column, in order."""
    yield from (*IDENTITY, *CONDITIONS, *MEASURES)
    yield from ("wanted_bytes", "first_touch_ascending", "fetched_bytes", "fetched_never_read")
    yield from ("lost_work_s", "lost_step_s", "lost_kinds")
    for phase in PHASES:
        for kind in KINDS:
            for what in ("p50_s", "p99_s", "per_s"):
                yield f"{kind}_{what}_{phase.replace('-', '_')}"


def write(path: Path, rows: Sequence[Row]) -> None:
    """The table as CSV; floats to nine digits, empty: never, or not measured."""
    names = list(columns())
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n", restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _text(value) for key, value in row.items()})


def _text(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = experiments.parser("analysis.metrics", __doc__)
    parser.add_argument("runs", type=Path, metavar="RUNS_DIR")
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    args = parser.parse_args(argv)
    out = args.out / "metrics.csv" if args.out.is_dir() else args.out
    try:
        rows = table(args.runs)
        write(out, rows)
    except (RunError, OSError) as error:
        print(f"metrics: {error}", file=sys.stderr)
        return 1
    bad = [row for row in rows if row["outcome"] != "ok"]
    print(f"metrics: {len(rows)} runs, {len(bad)} of them not ok, in {out}")
    for row in bad:
        print(f"metrics: {row['cell']}: {row['outcome']}: {row['reason']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
