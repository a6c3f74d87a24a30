"""Two systems in one condition of the comparison: who is ahead in a measure, and if that is told.

Systems are compared seed by seed: one seed is the same disk, the same guest and the same load. Of
several seeds a difference counts if their interval says so.

What never happened is worse than any time: with some seeds only it decides, unless the others, and
most of all, say the contrary. That can only be said of a run that was watched for as long as the
other needed, and was slow for as long: a few reads don't show that it is not. Who was not might
have been the best: then there is no verdict against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from experiments.analysis.estimates import Estimate, paired_ratio


@dataclass(frozen=True)
class Measure:
    """`never` is what is said where it did not happen; empty: then it was not measured. The column
    `until` has until when, at least, it had not."""

    column: str
    label: str
    better: str  # what a system does that has less of it
    never: str = ""
    log: bool = True
    until: str = "observed_s"


MEASURES = (
    Measure("downtime_s", "downtime\n(s)", "is down for less time"),
    Measure(
        "independent_s", "switch until\nthe source may go (s)", "frees the source sooner", "never"
    ),
    Measure(
        "relocation_from_move_s",
        "move's start until\nthe source may go (s)",
        "moves in less time",
        "never",
    ),
    Measure("due_read_p99_s", "guest read p99\nmeanwhile, since due (s)", "reads faster meanwhile"),
    Measure(
        "due_write_p99_s", "guest write p99\nmeanwhile, since due (s)", "writes faster meanwhile"
    ),
    Measure(
        "recovered_s",
        "switch until the read p99\nis within 2x local (s)",
        "is at local speed sooner",
        "not seen",
        until="slow_until_s",
    ),
    Measure("lost_work_s", "work lost\n(s)", "loses less work", log=False),
)
#: those of which a ratio can be told
SCORED = [measure for measure in MEASURES if measure.log]
ALIKE = 1.1


@dataclass(frozen=True)
class Pair:
    """One measure of two systems in one condition.

    `ratio` is theirs over ours where it happened to both, `ours_s` our mean there; the numbers of
    seeds: that both ran (`runs`), and in which it happened to one of them only. Of either side, who
    was watched too briefly to say that it was not sooner than the other side's best.
    """

    ours: str
    theirs: str
    round_trip_s: float
    ratio: Estimate | None
    ours_s: float
    runs: int
    ours_never: int
    theirs_never: int
    ours_open: tuple[str, ...] = ()
    theirs_open: tuple[str, ...] = ()

    @property
    def lean(self) -> str:
        """`ok`, `bad` or empty, by the mean of what is known."""
        if self.ours_never != self.theirs_never and self.ratio is None:
            return "bad" if self.ours_never > self.theirs_never else "ok"
        mean = 1.0 if self.ratio is None else self.ratio.mean
        return "ok" if mean >= ALIKE else "bad" if mean <= 1 / ALIKE else ""

    @property
    def kind(self) -> str:
        """The same as a verdict: `untold` where the seeds don't tell, or the best is not known."""
        kind = self._kind
        unknown = self.theirs_open if kind == "ok" else self.ours_open if kind == "bad" else ()
        return "untold" if unknown else kind

    @property
    def _kind(self) -> str:
        often = 2 * (self.ours_never + self.theirs_never) > self.runs
        if self.ours_never and self.theirs_never:
            return "untold"
        if self.theirs_never:
            return "ok" if self.lean != "bad" or often else "untold"
        if self.ours_never:
            return "bad" if self.lean != "ok" or often else "untold"
        return self.lean if not self.lean or _told(self.ratio) else "untold"


def _told(ratio: Estimate | None) -> bool:
    """Whether the seeds, where there are several, tell it from 1."""
    return ratio is None or ratio.count == 1 or not ratio.low <= 1 <= ratio.high


def meet(
    here: pd.DataFrame,
    round_trip_s: float,
    ours: Sequence[str],
    theirs: Sequence[str],
    measure: Measure,
) -> Pair | None:
    """The best of both sides in one condition; None where they can't be compared."""
    names = [best(here, side, measure) for side in (ours, theirs)]
    if not measure.log or None in names:
        return None
    mine, peer = (here[here["name"] == name].set_index("seed") for name in names)
    both = mine.index.intersection(peer.index)
    mine, peer = mine.loc[both], peer.loc[both]
    never = (_never(mine, peer, measure), _never(peer, mine, measure))
    ratio = paired_ratio(peer[measure.column], mine[measure.column])
    if ratio is None and not any(never):
        return None
    mean_s = float(mine[measure.column].mean())
    open_ = (_open(here, ours, peer, measure), _open(here, theirs, mine, measure))
    return Pair(
        str(names[0]), str(names[1]), round_trip_s, ratio, mean_s, len(both), *never, *open_
    )


def _open(
    here: pd.DataFrame, names: Sequence[str], other: pd.DataFrame, measure: Measure
) -> tuple[str, ...]:
    """To whom it may have happened with every seed before it did to the other, for all one saw."""
    known_s = here["seed"].map(other[measure.column])
    may = here[measure.column].isna() & known_s.notna() & ~(here[measure.until] >= known_s)
    always = may.groupby(here["name"]).all()
    return tuple(name for name in names if measure.never and always.get(name, False))


def _never(one: pd.DataFrame, other: pd.DataFrame, measure: Measure) -> int:
    """With how many seeds it happened to the other only, and had not so long after the switch."""
    if not measure.never:
        return 0
    known_s = other[measure.column]
    return int((one[measure.column].isna() & (one[measure.until] >= known_s)).sum())


def best(here: pd.DataFrame, names: Sequence[str], measure: Measure) -> str | None:
    """Which of the systems has least; one that it happened to more often comes first.

    None if none of them ran, or nothing was measured that must have happened.
    """
    values = here[here["name"].isin(names)].groupby("name")[measure.column]
    found = pd.DataFrame({"lacks": values.apply(lambda v: v.isna().mean()), "mean": values.mean()})
    if not measure.never:
        found = found.dropna()
    return (
        None if found.empty else str(found.sort_values(["lacks", "mean"], kind="stable").index[0])
    )
