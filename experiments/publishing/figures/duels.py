"""Ours against each peer, over all conditions of the comparison: in ratios.

Ours is the better of relocator and hybrid, for each measure in each condition. Systems are compared
seed by seed: one seed is the same disk, the same guest and the same load.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from experiments.analysis.estimates import Estimate, paired_ratio
from experiments.publishing.figures import draw
from experiments.publishing.figures.evidence import seconds


@dataclass(frozen=True)
class Measure:
    column: str
    label: str
    better: str  # what a system does that has less of it
    never: str = "never"
    log: bool = True


MEASURES = (
    Measure("downtime_s", "downtime\n(s)", "is down for less time"),
    Measure("independent_s", "switch until\nthe source may go (s)", "frees the source sooner"),
    Measure(
        "relocation_from_move_s", "move's start until\nthe source may go (s)", "moves in less time"
    ),
    Measure("during_read_p99_s", "guest read p99\nmeanwhile (s)", "reads faster meanwhile"),
    Measure("during_write_p99_s", "guest write p99\nmeanwhile (s)", "writes faster meanwhile"),
    Measure(
        "recovered_s",
        "switch until the read p99\nis within 2x local (s)",
        "is at local speed sooner",
        "not seen",
    ),
    Measure("lost_work_s", "work lost\n(s)", "loses less work", "", False),
)
#: those of which a ratio can be told
SCORED = [measure for measure in MEASURES if measure.log]
ALIKE = 1.1
KEYS = ["axis_rtt", "axis_rate"]
#: ours; `hybrid` copies ahead and keeps in step, `relocator` copies after the switch
OURS = ("relocator", "hybrid")
#: what is no peer: it has what the others lack, or does less
NO_PEERS = (*OURS, "stay", "seeded")


def conditions(frame: pd.DataFrame) -> list[tuple[str, str]]:
    found = frame[KEYS].drop_duplicates().itertuples(index=False)
    return sorted(found, key=lambda pair: (seconds(pair[0]), pair[1]))


def by_condition(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(round-trip time, rate, the runs with them)"""
    for rtt, rate in conditions(frame):
        yield rtt, rate, frame[(frame["axis_rtt"] == rtt) & (frame["axis_rate"] == rate)]


@dataclass(frozen=True)
class Score:
    """A cell of the table; `kind` is `ok` where ours is ahead, `bad` where the peer is."""

    text: str
    kind: str


@dataclass(frozen=True)
class Duel:
    """One measure against one peer: the peer's value over ours in each condition."""

    measure: Measure
    ratios: tuple[float, ...]
    ours_never: int
    theirs_never: int

    @property
    def wins(self) -> bool:
        return not self.loses and bool(self.won or self.theirs_never)

    @property
    def loses(self) -> bool:
        return bool(self.ours_never) or any(ratio <= 1 / ALIKE for ratio in self.ratios)

    @property
    def score(self) -> Score | None:
        """How many times better ours is; None if the two can't be compared."""
        if self.ours_never and not self.ratios:
            return Score(f"ours: {self.measure.never}", "bad")
        if self.theirs_never and not self.ratios:
            return Score(f"there: {self.measure.never}", "ok")
        if not self.ratios:
            return None
        low, high = (draw.times(bound(self.ratios)) for bound in (min, max))
        kind = "ok" if self.wins else "bad" if max(self.ratios) <= 1 / ALIKE else ""
        return Score(f"{low} ×" if low == high else f"{low} to {high} ×", kind)

    @property
    def won(self) -> list[float]:
        """The ratios that are no tie."""
        return [ratio for ratio in self.ratios if ratio >= ALIKE]


def duels(frame: pd.DataFrame, peer: str) -> list[Duel]:
    """Ours against a peer, over the conditions in which both ran."""
    found = []
    for measure in MEASURES:
        ratios, ours_never, theirs_never = [], 0, 0
        for _, _, here in by_condition(frame):
            mine = _best(here, OURS, measure) or OURS[0]
            sides = [here[here["name"] == name] for name in (mine, peer)]
            if any(side.empty for side in sides):
                continue
            ours, theirs = (_values(side, measure) for side in sides)
            ratio = paired_ratio(theirs, ours) if measure.log else None
            if ratio is not None:
                ratios.append(ratio.mean)
            elif measure.never and ours.notna().any() and theirs.isna().all():
                theirs_never += 1
            elif measure.never and theirs.notna().any() and ours.isna().all():
                ours_never += 1
        found.append(Duel(measure, tuple(ratios), ours_never, theirs_never))
    return found


def _values(rows: pd.DataFrame, measure: Measure) -> pd.Series:
    """What was measured, by seed."""
    values: pd.Series = rows.set_index("seed")[measure.column]
    return values


def peers(frame: pd.DataFrame) -> list[str]:
    """Whom ours can be compared with."""
    names = draw.ordered(frame["name"]) if len(frame) else []
    there = any(name in names for name in OURS)
    return [name for name in names if there and name not in NO_PEERS]


def front(frame: pd.DataFrame) -> dict[str, list[Score | None]]:
    """Condition -> for each of SCORED the best of the peers against the best of ours."""
    others = peers(frame)
    found = {}
    for rtt, rate, here in by_condition(frame) if others else ():
        found[f"{rtt}, {rate}"] = [_front(here, others, measure) for measure in SCORED]
    return found


def _front(here: pd.DataFrame, others: Sequence[str], measure: Measure) -> Score | None:
    ours, theirs = _best(here, OURS, measure), _best(here, others, measure)
    if theirs is None:
        return None if ours is None else Score(f"nobody else: {measure.never}", "ok")
    if ours is None:
        return Score(f"ours: {measure.never}; {theirs}", "bad")
    sides = (_values(here[here["name"] == name], measure) for name in (theirs, ours))
    ratio = paired_ratio(*sides)
    if ratio is None:
        return None
    kind = "ok" if ratio.mean >= ALIKE else "bad" if ratio.mean <= 1 / ALIKE else ""
    return Score(f"{_interval(ratio)}: {theirs} to {ours}", kind)


def _best(here: pd.DataFrame, names: Sequence[str], measure: Measure) -> str | None:
    """Which of the systems has least."""
    means = here[here["name"].isin(names)].groupby("name")[measure.column].mean().dropna()
    return None if means.empty else str(means.idxmin())


def tally(rows: Mapping[str, Sequence[Score | None]]) -> str:
    """The table of `front` in a sentence: how often ours is ahead, and where it isn't."""
    told = [score for row in rows.values() for score in row if score is not None]
    count = {kind: sum(score.kind == kind for score in told) for kind in ("ok", "", "bad")}
    said = f"Of {len(told)} cells ours is ahead in {count['ok']}"
    said += f", no further than 10 % apart in {count['']}" if count[""] else ""
    if not count["bad"]:
        return f"{said}; nobody is ahead of ours."
    behind = []
    for measure, *column in zip(SCORED, *rows.values(), strict=True):
        lost = [score for score in column if score is not None and score.kind == "bad"]
        label = measure.label.replace("\n", " ").removesuffix(" (s)")
        behind += [f"{label} ({len(lost)} of {len(column)} conditions)"] if lost else []
    return (
        f"{said}, another in {count['bad']}: {draw.joined(behind)}; each peer's sentence says why."
    )


def _interval(ratio: Estimate) -> str:
    """A ratio as it is shown, with its interval if there are several seeds."""
    low, mean, high = (draw.times(value) for value in (ratio.low, ratio.mean, ratio.high))
    return f"{mean} ×" if ratio.count == 1 else f"{mean} × ({low} to {high})"


def scores(frame: pd.DataFrame) -> dict[str, list[Score | None]]:
    """Peer -> a score for each of SCORED."""
    return {
        peer: [duel.score for duel in duels(frame, peer) if duel.measure in SCORED]
        for peer in peers(frame)
    }
