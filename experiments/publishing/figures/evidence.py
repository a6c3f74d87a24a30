"""What the figures are made of: the table of metrics, the runs behind it, the spread of seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pandas as pd

from experiments.analysis.estimates import read_metrics
from experiments.running.rundir import Run, brief, load_run
from experiments.scenarios import cells

#: what need not happen in a run: column -> what is then said
MAY_LACK = {
    "independent_s": "the source could not be freed",
    "recovered_s": "reads were not as local",
}


@dataclass(frozen=True)
class Drawn:
    """A figure and what is said about it; without a picture there was nothing to draw."""

    title: str
    png: bytes | None = None
    sentences: Sequence[str] = ()
    notes: Sequence[str] = ()
    table: pd.DataFrame | None = field(default=None, compare=False)


class Evidence:
    """`frame` has a row a run, with every column of docs/metrics.md and one more an axis."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.frame = read_metrics(out / "metrics.csv")
        matrix = out / "matrix.json"
        self._asked = {cell.id: cell for cell in cells.read(matrix)} if matrix.is_file() else {}
        self._load = lru_cache(maxsize=64)(load_run)

    def run(self, row: pd.Series) -> Run:
        return self._load(self.out / "runs" / str(row["cell"]))

    def scenario(self, name: str) -> pd.DataFrame:
        """Its runs that went well, with a column for each axis."""
        rows = self.frame[(self.frame["scenario"] == name) & (self.frame["outcome"] == "ok")]
        return rows.reset_index(drop=True).join(_axes(rows["axes"]))

    def caption(self, name: str) -> str:
        """Clock and seeds of a figure in a line, and how many runs it lacks."""
        rows = self.scenario(name)
        seeds = rows.groupby(["axes", "name"])["seed"].nunique()
        clocks = " and ".join(sorted(rows["clock"].unique()))
        said = f"Clock: {clocks}. {spread_note(int(seeds.min()), int(seeds.max()))}"
        count = len(self.failed(name)) + len(self._lacking(name))
        return said + (f" Lacks {count} run{'s' if count > 1 else ''}." if count else "")

    def failed(self, name: str) -> pd.DataFrame:
        """Its runs that did not go well, with a column for each axis."""
        rows = self.frame[(self.frame["scenario"] == name) & (self.frame["outcome"] != "ok")]
        return rows.reset_index(drop=True).join(_axes(rows["axes"]))

    def finding(self, row: pd.Series) -> str | None:
        """What is known to be wrong with the system of a run that failed, if anything is."""
        cell = self._asked.get(str(row["cell"]))
        return cell.finding(row["outcome"]) if cell is not None else None

    def _lacking(self, name: str) -> list[str]:
        rows = self.frame[self.frame["scenario"] == name]
        asked = {cell.id for cell in self._asked.values() if cell.scenario == name}
        return sorted(asked - set(rows["cell"]))

    def not_shown(self, failed: pd.DataFrame) -> list[str]:
        """A sentence for the runs of a system that ended alike, each of them named."""
        alike: dict[tuple[str, ...], list[str]] = {}
        for _, row in failed.iterrows():
            key = (row["name"], row["outcome"], brief(row["reason"]), self.finding(row) or "")
            alike.setdefault(key, []).append(str(row["cell"]))
        return [
            f"Not shown: {', '.join(named)} {outcome}: {reason}"
            + (f". A finding: {known}." if known else "")
            for (_, outcome, reason, known), named in alike.items()
        ]

    def _unsteady(self, name: str) -> list[str]:
        """What happened with some seeds only: a mean of the others is not the whole of it. And a
        copy that was to end and never did, which figures of times can't show."""
        said = []
        for (axes, system), rows in self.scenario(name).groupby(["axes", "name"]):
            copied = rows["wan_over_allocated"].notna() & (rows["background"] == "on")
            if copied.all() and rows["independent_s"].isna().all():
                where = " at ".join(part for part in (system, axes) if part)
                said.append(f"Never: {where}: {MAY_LACK['independent_s']} while it was watched.")
            for column, what in MAY_LACK.items():
                lacking = int(rows[column].isna().sum())
                if 0 < lacking < len(rows):
                    where = " at ".join(part for part in (system, axes) if part)
                    often = f"with {lacking} of {len(rows)} seeds"
                    said.append(
                        f"Not every time: {where}: {what} {often} while it was watched; "
                        "a mean is of the others."
                    )
        return said

    def notes(self, name: str) -> list[str]:
        """Clock, seeds, and every run of the scenario that is not in its figure."""
        rows = self.frame[self.frame["scenario"] == name]
        said = [self.caption(name)] if (rows["outcome"] == "ok").any() else []
        said += self.not_shown(self.failed(name)) + self._unsteady(name)
        lacking = self._lacking(name)
        if lacking:
            more = f" and {len(lacking) - 6} more" if len(lacking) > 6 else ""
            said.append(f"Not run yet: {', '.join(lacking[:6])}{more}.")
        return said


def spread_note(fewest: int, most: int) -> str:
    if most == 1:
        return "One seed: points without an interval."
    count = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{count} seeds: mean and 95 % t interval."


def _axes(texts: pd.Series) -> pd.DataFrame:
    parsed = [dict(pair.split("=", 1) for pair in text.split(",") if "=" in pair) for text in texts]
    return pd.DataFrame(parsed, index=range(len(parsed)), dtype=object).add_prefix("axis_")


def seconds(text: str) -> float:
    """An axis' label such as `100ms` in seconds, for order."""
    for unit, scale in (("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * scale
    return float(text)


def size_bytes(text: str) -> float:
    """An axis' label such as `64K` in bytes; infinity for `auto`."""
    if text == "auto":
        return math.inf
    scale = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1])
    return float(text) if scale is None else float(text[:-1]) * scale


def fraction(text: str) -> float:
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
