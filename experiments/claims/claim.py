"""A claim is one figure that must be above or below something, or between two bounds.

The figure is a metric of a run, or a metric of one run over the same of another, so a claim can be
looked up in any table of metrics: the published one, and one made here and now.
"""

import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.analysis.metrics import columns
from experiments.scenarios.cells import Cell
from experiments.scenarios.schema import ScenarioError, nearest

CLAIMS = Path(__file__).with_name("claims.toml")
_NUMBER = r"(\d+(?:\.\d+)?)"
_HOLDS = re.compile(rf"<= {_NUMBER}|>= {_NUMBER}|{_NUMBER} to {_NUMBER}")
_KEYS = {"says", "figure", "holds", "unit", "paper", "beside"}


@dataclass(frozen=True)
class Claim:
    """`metric` of the run `of` (over that of `over`) is to be from `low` to `high`."""

    says: str
    metric: str
    of: str
    over: str | None
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    paper: str = ""
    beside: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        """The runs that it speaks of, and those that its metric needs."""
        return (self.of, *([self.over] if self.over else []), *self.beside)

    @property
    def expected(self) -> str:
        """What the figure is to be, for a person."""
        if math.isinf(self.low):
            return f"at most {self.high:g}{self.suffix}"
        if math.isinf(self.high):
            return f"at least {self.low:g}{self.suffix}"
        return f"{self.low:g} to {self.high:g}{self.suffix}"

    @property
    def suffix(self) -> str:
        return f" {self.unit}" if self.unit else " ×" if self.over else ""

    def figure(self, metrics: pd.DataFrame) -> float:
        """The figure in a table of metrics.

        NaN where a run isn't there or did not end well, or it never happened in it. What may be
        zero or below, such as lost work, has a quotient where it is above zero: over nothing it
        is infinite, and that of nothing is NaN.
        """
        one = _value(metrics, self.of, self.metric)
        if self.over is None:
            return one
        other = _value(metrics, self.over, self.metric)
        if math.isnan(other) or not one > 0:
            return math.nan
        return one / other if other > 0 else math.inf

    def holds(self, figure: float) -> bool:
        """Whether a figure bears it out; NaN never does."""
        return self.low <= figure <= self.high


def _value(metrics: pd.DataFrame, cell: str, metric: str) -> float:
    rows = metrics[(metrics["cell"] == cell) & (metrics["outcome"] == "ok")]
    return float(rows[metric].iloc[0]) if len(rows) else math.nan


def load(path: Path = CLAIMS) -> list[Claim]:
    """The claims; ScenarioError names what can't be."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(path, "claims", None, f"can't be read: {error}") from error
    return [_claim(path, number, one) for number, one in enumerate(document["claims"], 1)]


def _claim(path: Path, number: int, given: dict[str, object]) -> Claim:
    where = f"claim {number}"
    for key in sorted(set(given) - _KEYS):
        raise ScenarioError(path, f"{where}: {key}", given[key], nearest(key, _KEYS))
    figure = given.get("figure")
    if not (isinstance(figure, list) and len(figure) in (2, 3)):
        right = "[METRIC, CELL] or [METRIC, CELL, CELL]"
        raise ScenarioError(path, f"{where}: figure", figure, right)
    if figure[0] not in columns():
        raise ScenarioError(path, f"{where}: figure", figure[0], nearest(figure[0], columns()))
    holds = _HOLDS.fullmatch(str(given.get("holds")))
    if holds is None:
        right = "'<= N', '>= N' or 'N to N'"
        raise ScenarioError(path, f"{where}: holds", given.get("holds"), right)
    most, least, low, high = (None if text is None else float(text) for text in holds.groups())
    beside = given.get("beside", [])
    assert isinstance(beside, list)
    return Claim(
        says=str(given["says"]),
        metric=figure[0],
        of=figure[1],
        over=figure[2] if len(figure) == 3 else None,
        low=next((bound for bound in (least, low) if bound is not None), -math.inf),
        high=next((bound for bound in (most, high) if bound is not None), math.inf),
        unit=str(given.get("unit", "")),
        paper=str(given.get("paper", "")),
        beside=tuple(beside),
    )


def cells_of(claims: Sequence[Claim], known: Sequence[Cell]) -> list[Cell]:
    """The cells that have to run, with those that they need, in the order of the matrix."""
    by_id = {cell.id: cell for cell in known}
    wanted: set[str] = set()
    left = [cell for claim in claims for cell in claim.cells]
    while left:
        cell = left.pop()
        if cell not in by_id:
            raise ScenarioError(CLAIMS, "figure", cell, nearest(cell, by_id).partition("known:")[0])
        if cell not in wanted:
            wanted.add(cell)
            left += by_id[cell].needs
    return [cell for cell in known if cell.id in wanted]
