"""Ours against each peer, over all conditions of the comparison: in tables and in words.

Ours is the better of relocator and hybrid, for each measure in each condition.

Systems are compared seed by seed: one seed is the same disk, the same guest and the same load.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
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
READS = "during_read_p99_s"
LITTLE_S = 0.1  # of lost work
NOTHING_S = 1e-4  # a handover in which nothing is done
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


def verdicts(frame: pd.DataFrame) -> list[str]:
    """A sentence for each peer: where ours is better, where not, and why."""
    said = [_verdict(frame, peer) for peer in peers(frame)]
    return [one for one in (*said, _seeded(frame)) if one]


def _verdict(frame: pd.DataFrame, peer: str) -> str:
    found = [
        duel
        for duel in duels(frame, peer)
        if duel.ratios or duel.measure.column != "relocation_from_move_s"
    ]
    wins = [_won(duel) for duel in found if duel.wins]
    behind = [duel for duel in found if duel.loses]
    mixed = _lost_work(frame, peer)
    said = []
    if wins:
        said.append(f"ours {draw.joined(wins)}")
    if behind:
        losses = draw.joined([_lost(duel) for duel in behind])
        said.append(f"{peer} {losses}{_why(frame, peer, behind)}")
    if mixed:
        said.append(mixed)
    return f"Against {peer}: {'. '.join(said)}." if said else ""


def _seeded(frame: pd.DataFrame) -> str:
    """What a template at the destination is worth, which no peer can use."""
    found: dict[str, list[float]] = {"wan_over_allocated": [], "independent_s": []}
    for _, _, here in by_condition(frame) if "seeded" in set(frame["name"]) else ():
        seeded, plain = (here[here["name"] == n].set_index("seed") for n in ("seeded", OURS[0]))
        for column, ratios in found.items():
            if (ratio := paired_ratio(seeded[column], plain[column])) is not None:
                ratios.append(ratio.mean)
    if not all(found.values()):
        return ""
    sent, took = (_range(ratios) for ratios in found.values())
    return (
        f"seeded (the destination has the disk's template) against relocator: {sent} the bytes "
        f"over the WAN, {took} the time until the source may go; no peer knows of templates."
    )


def _range(values: Sequence[float]) -> str:
    low, high = draw.times(min(values)), draw.times(max(values))
    return f"{low} times" if low == high else f"{low} to {high} times"


def _won(duel: Duel) -> str:
    if not duel.won:
        return f"{duel.measure.better} (there: {duel.measure.never})"
    total = len(duel.ratios) + duel.theirs_never
    where = "" if len(duel.won) == total else f" in {len(duel.won)} of {total} conditions"
    never = f", in {duel.theirs_never} there {duel.measure.never}" if duel.theirs_never else ""
    return f"{duel.measure.better} ({_range(duel.won)}{where}{never})"


def _lost(duel: Duel) -> str:
    worse = [1 / ratio for ratio in duel.ratios if ratio <= 1 / ALIKE]
    if not worse:
        return f"{duel.measure.better} (ours: {duel.measure.never})"
    where = (
        ""
        if len(worse) == len(duel.ratios)
        else f" in {len(worse)} of {len(duel.ratios)} conditions"
    )
    return f"{duel.measure.better} ({_range(worse)}{where})"


def _lost_work(frame: pd.DataFrame, peer: str) -> str:
    """Differences, since lost work may be zero."""
    keys = [*KEYS, "name"]
    means = frame.groupby(keys)["lost_work_s"].mean().unstack("name")
    ours = [name for name in OURS if name in means]
    if peer not in means or not ours:
        return ""
    gap = (means[peer] - means[ours].min(axis=1)).dropna()
    if gap.empty or gap.abs().max() < LITTLE_S:
        return ""
    if gap.min() >= 0:
        return f"{peer} loses {_amount(gap)} more of work"
    if gap.max() <= 0:
        return f"ours loses {_amount(-gap)} more of work"
    low, high = draw.s(float(gap.min())), draw.s(float(gap.max()))
    return f"{peer} loses between {low} and {high} more of work"


def _amount(gap: pd.Series) -> str:
    low, high = draw.s(float(gap.min())), draw.s(float(gap.max()))
    if gap.min() < LITTLE_S:
        return f"up to {high}"
    return low if low == high else f"{low} to {high}"


def _why(frame: pd.DataFrame, peer: str, losses: Sequence[Duel]) -> str:
    """What the same runs show to be the reason why a peer is ahead in these measures."""
    columns = ["downtime_s", "independent_s", "relocation_from_move_s", "handover_s"]
    mean = frame.groupby("name")[[*columns, "background_delay_s"]].mean()
    theirs, mine = mean.loc[peer], mean.loc[mean.index.isin(OURS), "downtime_s"].idxmin()
    ours = mean.loc[mine]
    lost = {duel.measure.column for duel in losses}
    said = []
    if "downtime_s" in lost and ours["handover_s"] > theirs["handover_s"]:
        took = draw.s(float(ours["handover_s"]))
        there = ", which is sealed at the source; there nothing is"
        there = there if theirs["handover_s"] < NOTHING_S else ""
        said.append(f"of {mine}'s downtime {took} on average are the handover of the disk{there}")
        if "during_write_p99_s" in lost:
            said.append("a write that meets the switch waits for its end")
    if math.isnan(theirs["independent_s"]):
        if "during_read_p99_s" in lost:
            said.append("its disk stays, so that nothing is copied beside the guest's own I/O")
    elif np.isclose(theirs["independent_s"], theirs["downtime_s"], rtol=0.2, atol=0.1):
        said.append(_copied_before(theirs))
        if "independent_s" in lost:
            trips = _round_trips(frame, peer, "independent_s")
            said.append(f"ours brings the rest after the switch, in {trips} round trips")
    if READS in lost:
        trips = _round_trips(frame, peer, READS)
        said.append(f"a block that is not here yet costs a round trip, our read p99 is {trips}")
    if lost & {"independent_s", "relocation_from_move_s"} and ours["background_delay_s"] > 0:
        delay = draw.s(float(ours["background_delay_s"]))
        said.append(f"{mine}'s background copy was told to start {delay} after the switch")
    return f": {'; '.join(said)}" if said else ""


def _round_trips(frame: pd.DataFrame, peer: str, column: str) -> str:
    """Our figure in round trips, where the peer's is better."""
    found = []
    for rtt, _, here in by_condition(frame):
        ours, theirs = (
            here[here["name"].isin(names)].groupby("name")[column].mean().min()
            for names in (OURS, [peer])
        )
        if theirs * ALIKE <= ours:
            found.append(float(ours) / seconds(rtt))
    low, high = min(found, default=math.nan), max(found, default=math.nan)
    return f"{low:.2g}" if math.isclose(low, high, rel_tol=0.05) else f"{low:.2g} to {high:.2g}"


def _copied_before(theirs: pd.Series) -> str:
    if theirs["downtime_s"] > theirs["relocation_from_move_s"] / 2:
        stood = draw.s(float(theirs["downtime_s"]))
        return f"its disk is copied while its guest stands still, on average {stood}"
    gone = draw.s(float(theirs["relocation_from_move_s"] - theirs["independent_s"]))
    return f"its guest moves when the disk is there, on average {gone} after the move began"
