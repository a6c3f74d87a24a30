"""Says whether a new evaluation agrees with a published one.

    python -m experiments.analysis.agree PUBLISHED NEW

Both are metrics.csv, or a directory that has one. Cells are compared without their seed, metric by
metric, for the metrics below:

    identical   on the virtual clock: the same value for every seed that both have
    agrees      the means differ by no more than the metric's tolerance, or, of three seeds and more
                on both sides whose 95 % t intervals overlap, by no more than three times as much
    differs     neither

An interval of two seeds is so wide that it overlaps with nearly everything: it proves nothing. A
seed whose run went well on one side and not on the other differs, and so does a figure that is
there with a seed in one and not in the other ("never"). A cell that was run under other conditions,
such as a quick one and a full one, is another experiment, and differs. Cells that stand in only one
of them are named and don't count, and so are metrics that only one of them knows.

Exit status: 0 all agree; 1 something differs; 2 a file can't be read or nothing can be compared.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import experiments
from experiments.analysis.estimates import Estimate, estimate, read_metrics
from experiments.analysis.metrics import CONDITIONS
from experiments.running.rundir import RunError

KEYS = ["scenario", "axes", "name"]
VERDICTS = ("identical", "agrees", "differs")


@dataclass(frozen=True)
class Tolerance:
    """How far two means may be apart: a fraction of the larger, or an amount that never matters."""

    fraction: float
    amount: float


#: What is compared. Percentiles of the guest's latency spread most, counts of bytes least. The
#: amounts are about what two seeds of the published evaluation are apart: where a figure is so
#: small that they are more than the fraction, it is not worth a verdict.
METRICS = {
    "downtime_s": Tolerance(0.15, 0.003),
    "handover_s": Tolerance(0.15, 0.001),
    "independent_s": Tolerance(0.10, 0.03),
    "relocation_from_move_s": Tolerance(0.10, 0.05),
    "recovered_s": Tolerance(0.20, 0.25),
    "during_read_p50_s": Tolerance(0.20, 0.001),
    "during_read_p99_s": Tolerance(0.30, 0.005),
    "during_write_p99_s": Tolerance(0.30, 0.002),
    "due_read_p99_s": Tolerance(0.30, 0.005),
    "due_write_p99_s": Tolerance(0.30, 0.005),
    "miss_s": Tolerance(0.20, 0.25),
    "lost_work_s": Tolerance(0.20, 0.2),
    "copy_s": Tolerance(0.10, 0.05),
    "link_use": Tolerance(0.05, 0.0),
    "wan_over_allocated": Tolerance(0.03, 0.0),
}
#: Of fewer seeds an interval tells nothing; one that overlaps excuses so many tolerances.
FEWEST_SEEDS = 3
MOST_TOLERANCES = 3


@dataclass(frozen=True)
class Finding:
    """One metric of one cell in both."""

    cell: str
    metric: str
    verdict: str
    detail: str


def compare(published: pd.DataFrame, new: pd.DataFrame) -> Iterator[Finding]:
    """A finding for every metric of every cell that both ran; its outcome only if it differs."""
    unknown = {*published.attrs.get("lacks", ()), *new.attrs.get("lacks", ())}
    ours = dict(iter(new.groupby(KEYS)))
    for key, rows in published.groupby(KEYS):
        cell = "/".join(part for part in key if part)
        if key not in ours:
            continue
        if (detail := _outcomes(rows, ours[key])) is not None:
            yield Finding(cell, "outcome", "differs", detail)
        was, now = (frame[frame["outcome"] == "ok"] for frame in (rows, ours[key]))
        if was.empty or now.empty:
            continue
        known = [name for name in CONDITIONS if name not in unknown]
        if other := [name for name in known if _all(was[name]) != _all(now[name])]:
            told = (f"{name} {_all(was[name])} published, {_all(now[name])} now" for name in other)
            yield Finding(cell, "conditions", "differs", "; ".join(told))
            continue
        for metric, tolerance in METRICS.items():
            if metric not in unknown:
                yield _metric(cell, metric, tolerance, was, now)


def _all(values: pd.Series) -> str:
    """Its different values, for a person; a number is the same whatever its column's type."""
    known = values.dropna().unique()
    return " and ".join(sorted(v if isinstance(v, str) else f"{v:.9g}" for v in known))


def _outcomes(was: pd.DataFrame, now: pd.DataFrame) -> str | None:
    """Which seeds ended well on one side only; without common seeds, whether any did."""
    one, other = (frame.set_index("seed") for frame in (was, now))
    both = sorted(set(one.index) & set(other.index))
    pairs = [(one.loc[seed], other.loc[seed]) for seed in both] or [(was.iloc[0], now.iloc[0])]
    for before, after in pairs:
        if (before["outcome"] == "ok") != (after["outcome"] == "ok"):
            where = f" (seed {before.name})" if len(pairs) > 1 else ""
            return f"{_outcome(before)}, now {_outcome(after)}{where}"
    return None


def _outcome(run: pd.Series) -> str:
    return "went well" if run["outcome"] == "ok" else str(run["reason"] or run["outcome"])


def _metric(
    cell: str, metric: str, tolerance: Tolerance, was: pd.DataFrame, now: pd.DataFrame
) -> Finding:
    if _identical(metric, was, now):
        return Finding(cell, metric, "identical", "")
    one, other = (estimate(frame[metric].tolist()) for frame in (was, now))
    if one is None or other is None:
        if one is other:
            return Finding(cell, metric, "identical", "never in both")
        return Finding(cell, metric, "differs", f"{_text(one)} published, {_text(other)} now")
    if lacks := _lacking_seeds(metric, was, now):
        told = ", ".join(map(str, lacks))
        return Finding(cell, metric, "differs", f"never on one side only (seed {told})")
    apart = abs(one.mean - other.mean)
    allowed = max(tolerance.amount, tolerance.fraction * max(abs(one.mean), abs(other.mean)))
    overlap = one.low <= other.high and other.low <= one.high
    if overlap and min(one.count, other.count) >= FEWEST_SEEDS:
        allowed *= MOST_TOLERANCES
    detail = f"{_text(one)} published, {_text(other)} now; {allowed:.3g} apart are allowed"
    return Finding(cell, metric, "agrees" if apart <= allowed else "differs", detail)


def _lacking_seeds(metric: str, was: pd.DataFrame, now: pd.DataFrame) -> list[int]:
    """The seeds of both that lack it on one side."""
    one, other = (frame.set_index("seed")[metric].isna() for frame in (was, now))
    return [int(seed) for seed in one.index.intersection(other.index) if one[seed] != other[seed]]


def _identical(metric: str, was: pd.DataFrame, now: pd.DataFrame) -> bool:
    """The same values for the seeds that both have, on the virtual clock."""
    both = sorted(set(was["seed"]) & set(now["seed"]))
    one, other = (frame.set_index("seed")[metric].reindex(both) for frame in (was, now))
    virtual = bool((was["clock"] == "virtual").all() and (now["clock"] == "virtual").all())
    return virtual and bool(both) and one.equals(other)


def _text(value: Estimate | None) -> str:
    if value is None:
        return "never"
    if value.count == 1 or math.isclose(value.low, value.high):
        return f"{value.mean:.4g}"
    return f"{value.mean:.4g} ({value.low:.4g} to {value.high:.4g})"


def lacking(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Cells without their seed that stand in `one` only."""
    cells = [
        {"/".join(part for part in key if part) for key in frame[KEYS].itertuples(index=False)}
        for frame in (one, other)
    ]
    return sorted(cells[0] - cells[1])


def report(published: pd.DataFrame, new: pd.DataFrame) -> int:
    """Prints what was found; the exit status."""
    found = list(compare(published, new))
    for where, names in (
        ("PUBLISHED", lacking(published, new)),
        ("NEW", lacking(new, published)),
    ):
        if names:
            print(f"only in {where}, not compared: {', '.join(names)}")
    if lacks := {*published.attrs["lacks"], *new.attrs["lacks"]} & {*METRICS, *CONDITIONS}:
        print(f"not known in both, not compared: {', '.join(sorted(lacks))}")
    if not found:
        print("agree: there is nothing to compare: no cell stands in both", file=sys.stderr)
        return 2
    bad = [one for one in found if one.verdict == "differs"]
    for one in bad:
        print(f"differs: {one.cell}: {one.metric}: {one.detail}")
    counted = {verdict: sum(one.verdict == verdict for one in found) for verdict in VERDICTS}
    cells = len({one.cell for one in found})
    said = ", ".join(f"{count} {verdict}" for verdict, count in counted.items())
    print(f"{cells} cells, {len(found)} figures: {said}")
    return 1 if bad else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = experiments.parser("analysis.agree", __doc__)
    parser.add_argument("published", type=Path, metavar="PUBLISHED")
    parser.add_argument("new", type=Path, metavar="NEW")
    args = parser.parse_args(argv)
    try:
        tables = [
            read_metrics(path / "metrics.csv" if path.is_dir() else path)
            for path in (args.published, args.new)
        ]
    except RunError as error:
        print(f"agree: {error}", file=sys.stderr)
        return 2
    return report(*tables)


if __name__ == "__main__":
    sys.exit(main())
