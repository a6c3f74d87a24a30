"""The table of metrics as it was written, and what several seeds say together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from experiments.analysis.metrics import IDENTITY, columns
from experiments.running.rundir import RunError

TEXTS = (
    *(*IDENTITY, "congestion", "events", "guest", "workloads", "settings", "background"),
    "lost_kinds",
)


@dataclass(frozen=True)
class Estimate:
    """The mean of several seeds and its 95 % t interval; with one seed that is the point."""

    mean: float
    low: float
    high: float
    count: int

    def scaled(self, factor: float) -> "Estimate":
        return Estimate(self.mean * factor, self.low * factor, self.high * factor, self.count)


def estimate(values: Sequence[float]) -> Estimate | None:
    """None if no value is known."""
    known = np.array([value for value in values if not math.isnan(value)], dtype=float)
    if not len(known):
        return None
    mean = float(known.mean())
    if len(known) == 1:
        return Estimate(mean, mean, mean, 1)
    t = float(stats.t.ppf(0.975, df=len(known) - 1))
    half = t * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Estimate(mean, mean - half, mean + half, len(known))


def paired_ratio(one: pd.Series, other: pd.Series) -> Estimate | None:
    """How many times `other` `one` is, seed by seed (their index): the geometric mean and its 95 %
    t interval, of the seeds for which both are known and above 0; None if there are none."""
    both = pd.concat([one, other], axis=1, keys=["one", "other"]).dropna()
    both = both[(both > 0).all(axis=1)]
    found = estimate(np.log(both["one"] / both["other"]).tolist())
    if found is None:
        return None
    low, mean, high = (math.exp(value) for value in (found.low, found.mean, found.high))
    return Estimate(mean, low, high, found.count)


def read_metrics(path: Path) -> pd.DataFrame:
    """metrics.csv as it was written; RunError if it is something else.

    Columns that it lacks, since it was written by an older version, are empty, and named in
    `attrs["lacks"]`.
    """
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str) | {"seed": int})
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {error}") from error
    lacks = [name for name in columns() if name not in frame.columns]
    if missing := [name for name in lacks if name in IDENTITY]:
        raise RunError(f"{path}: these columns are missing: {', '.join(missing)}")
    frame = frame.assign(**dict.fromkeys(lacks, math.nan))
    for name in set(frame.columns) - set(TEXTS):
        frame[name] = pd.to_numeric(frame[name])
    frame[list(TEXTS)] = frame[list(TEXTS)].astype(object).fillna("")
    frame.attrs["lacks"] = lacks
    return frame
