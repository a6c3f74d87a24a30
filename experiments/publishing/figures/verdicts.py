"""Ours against each peer, over all conditions of the comparison: in words."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.analysis.estimates import paired_ratio
from experiments.publishing.figures import draw
from experiments.publishing.figures.duels import ALIKE, KEYS, OURS, Duel, by_condition, duels, peers
from experiments.publishing.figures.evidence import seconds

READS = "during_read_p99_s"
LITTLE_S = 0.1  # of lost work
NOTHING_S = 1e-4  # a handover in which nothing is done


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
