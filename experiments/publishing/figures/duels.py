"""Ours against each peer, over all conditions of the comparison: in ratios.

Ours is the better of relocator and hybrid, chosen anew for each measure in each condition; `alone`
says how each of them fares by itself. `pairs` says who is ahead in one condition.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from experiments.analysis.estimates import Estimate
from experiments.publishing.figures import draw
from experiments.publishing.figures.evidence import seconds
from experiments.publishing.figures.pairs import MEASURES, SCORED, Measure, Pair, meet

P99_NEEDS = 100
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
    """A cell of the table; `kind` is `ok` where ours is ahead, `bad` where the peer is, `untold`
    where the seeds don't tell, empty where they are level."""

    text: str
    kind: str


@dataclass(frozen=True)
class Duel:
    """One measure against a peer: a pair for each condition in which the two can be compared, of
    `ran` in which both ended well."""

    measure: Measure
    pairs: tuple[Pair, ...]
    ran: int

    @property
    def kind(self) -> str:
        """Ahead is who is so somewhere and leans behind nowhere."""
        leans = {one.lean if one.kind == "untold" else one.kind for one in self.pairs}
        for kind, other in (("ok", "bad"), ("bad", "ok")):
            if self.of(kind) and other not in leans:
                return kind
        return "untold" if leans - {""} else ""

    @property
    def ratios(self) -> list[float]:
        return [pair.ratio.mean for pair in self.pairs if pair.ratio is not None]

    @property
    def score(self) -> Score | None:
        """How many times better ours is; None if the two can't be compared."""
        if not self.pairs:
            return None
        low, high = (draw.times(bound(self.ratios, default=0.0)) for bound in (min, max))
        said = [f"{low} ×" if low == high else f"{low} to {high} ×"] if self.ratios else []
        runs = sum(pair.runs for pair in self.pairs)
        ours, theirs = zip(*((one.ours_never, one.theirs_never) for one in self.pairs), strict=True)
        for who, count in (("ours", sum(ours)), ("there", sum(theirs))):
            often = "" if count == runs else f" in {count} of {runs} runs"
            said += [f"{who}: {self.measure.never}{often}"] if count else []
        told = "" if len(self.pairs) == self.ran else f" (known in {len(self.pairs)} of {self.ran})"
        return Score("; ".join(said) + told, self.kind)

    def of(self, kind: str) -> list[Pair]:
        return [pair for pair in self.pairs if pair.kind == kind]


def duels(frame: pd.DataFrame, peer: str) -> list[Duel]:
    """Ours against a peer, over the conditions in which both ran."""
    return [_duel(frame, OURS, [peer], measure) for measure in MEASURES]


def _duel(
    frame: pd.DataFrame, ours: Sequence[str], theirs: Sequence[str], measure: Measure
) -> Duel:
    """The best of `theirs` in each condition over the best of `ours`."""
    both = [
        (seconds(rtt), here)
        for rtt, _, here in by_condition(frame)
        if all(here["name"].isin(names).any() for names in (ours, theirs))
    ]
    met = (meet(here, round_trip_s, ours, theirs, measure) for round_trip_s, here in both)
    return Duel(measure, tuple(pair for pair in met if pair is not None), len(both))


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
        found[f"{rtt}, {rate}"] = [_front(here, seconds(rtt), others, one) for one in SCORED]
    return found


def _front(
    here: pd.DataFrame, round_trip_s: float, others: Sequence[str], measure: Measure
) -> Score | None:
    pair = meet(here, round_trip_s, OURS, others, measure)
    if pair is None:
        return None
    if pair.ratio is None and not pair.ours_never and not pair.theirs_open:
        return Score(f"nobody else: {measure.never}", pair.kind)
    ratio = "" if pair.ratio is None else f"{_interval(pair.ratio)}: "
    said = f"{ratio}{pair.theirs} to {pair.ours}"
    if pair.runs < here["seed"].nunique():
        said += f", {pair.runs} of {here['seed'].nunique()} seeds"
    for who, count in ((pair.ours, pair.ours_never), (pair.theirs, pair.theirs_never)):
        often = "" if count == pair.runs else f" with {count} of {pair.runs} seeds"
        said += f"; {who}: {measure.never}{often}" if count else ""
    said += "".join(f"; {who}: not known" for who in (*pair.ours_open, *pair.theirs_open))
    return Score(said, pair.kind)


def tally(rows: Mapping[str, Sequence[Score | None]]) -> str:
    """The table of `front` in a sentence: how often ours is ahead, and where it isn't."""
    told = [score for row in rows.values() for score in row if score is not None]
    count = Counter(score.kind for score in told)
    said = f"Of {len(told)} cells ours is ahead in {count['ok']}"
    said += f", no further than 10 % apart in {count['']}" if count[""] else ""
    said += f", not told apart in {count['untold']}" if count["untold"] else ""
    if not count["bad"]:
        return (
            f"{said}, another in none." if count["untold"] else f"{said}; nobody is ahead of ours."
        )
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
    mean, low, high = (draw.times(value) for value in (ratio.mean, ratio.low, ratio.high))
    low, high = "0" if ratio.low < 1e-3 else low, "∞" if ratio.high > 1e3 else high
    return f"{mean} ×" if ratio.count == 1 else f"{mean} × ({low} to {high})"


def scores(frame: pd.DataFrame) -> dict[str, list[Score | None]]:
    """Peer (and in how many conditions it ended well) -> a score for each of SCORED."""
    return {
        peer + where(frame, peer): [duel.score for duel in duels(frame, peer) if duel.measure.log]
        for peer in peers(frame)
    }


def few(frame: pd.DataFrame) -> str:
    """In how many runs a p99 is of too few to be anything but the slowest; empty if in none."""
    counts = {kind: frame[f"during_{kind}s"].dropna() for kind in ("read", "write")}
    said = [
        f"of {kind}s in {(count < P99_NEEDS).sum()} of {len(count)} runs"
        for kind, count in counts.items()
        if (count < P99_NEEDS).any()
    ]
    told = f"A p99 of fewer than {P99_NEEDS} is the slowest of them: {draw.joined(said or [''])}."
    return told if said else ""


def where(frame: pd.DataFrame, peer: str) -> str:
    """In how many conditions a run of it ended well; empty if in all."""
    total = len(conditions(frame))
    there = len(conditions(frame[frame["name"] == peer]))
    return "" if there == total else f" ({there} of {total} conditions)"


def alone(frame: pd.DataFrame) -> dict[str, list[Score | None]]:
    """Each of ours by itself against the best of the peers; empty if there is but one."""
    ours = [name for name in OURS if name in set(frame["name"])] if len(frame) else []
    others = peers(frame)
    if len(ours) < 2 or not others:
        return {}
    return {
        name + where(frame, name): [_duel(frame, [name], others, one).score for one in SCORED]
        for name in ours
    }
