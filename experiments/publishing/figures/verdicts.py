"""Ours against each peer, over all conditions of the comparison: in words."""

import math
from collections.abc import Sequence
from operator import sub

import numpy as np
import pandas as pd

from experiments.analysis.estimates import paired_ratio
from experiments.publishing.figures import draw
from experiments.publishing.figures.duels import OURS, Duel, by_condition, duels, peers, where
from experiments.publishing.figures.pairs import ALIKE, MEASURES, best

READS = "due_read_p99_s"
LITTLE_S = 0.1  # of lost work, where one unit of it comes to less
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
    wins = [_told(duel, "ok") for duel in found if duel.kind == "ok"]
    behind = [duel for duel in found if duel.of("bad")]
    untold = [duel for duel in found if duel.kind == "untold" and duel not in behind]
    mixed = _lost_work(frame, peer)
    said = []
    if wins:
        said.append(f"ours {draw.joined(wins)}")
    if behind:
        losses = draw.joined([_told(duel, "bad") for duel in behind])
        said.append(f"{peer} {losses}{_why(frame, peer, behind)}")
    if untold:
        labels = draw.joined([_untold(duel) for duel in untold])
        said.append(f"Not told by the seeds, or not alike in all conditions: who {labels}")
    if mixed:
        said.append(mixed)
    return f"Against {peer}{where(frame, peer)}: {'. '.join(said)}." if said else ""


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


def _told(duel: Duel, kind: str) -> str:
    """Where ours (`ok`) or the peer (`bad`) is ahead: how many times, and where the other never."""
    total, ahead = duel.ran, duel.of(kind)
    ratios = [pair.ratio.mean for pair in ahead if pair.ratio is not None]
    known = [value if kind == "ok" else 1 / value for value in ratios]
    times = [value for value in known if value >= ALIKE]
    said = [_range(times) + _in(len(times), total)] if times else []
    if never := len(ahead) - len(times):
        said.append(
            f"{'there' if kind == 'ok' else 'ours'}: {duel.measure.never}{_in(never, total)}"
        )
    return f"{duel.measure.better} ({', '.join(said)})"


def _untold(duel: Duel) -> str:
    return f"{duel.measure.better} ({_range(duel.ratios)})" if duel.ratios else duel.measure.better


def _in(count: int, total: int) -> str:
    return "" if count == total else f" in {count} of {total} conditions"


def _lost_work(frame: pd.DataFrame, peer: str) -> str:
    """Differences, seed by seed, since lost work may be zero.

    Less than nothing is chance, and so is less than one unit of work, where the load has few.
    """
    (measure,) = (one for one in MEASURES if one.column == "lost_work_s")
    found = []
    for _, _, here in by_condition(frame):
        names = (best(here, side, measure) for side in ([peer], OURS))
        theirs, ours = (here[here["name"] == name].set_index("seed") for name in names)
        lost = (one[measure.column].clip(lower=0) for one in (theirs, ours))
        steps_s = (one["lost_step_s"] for one in (theirs, ours))
        step_s = np.nanmax([LITTLE_S, *pd.concat(steps_s)])
        gap_s = sub(*lost).mean()
        found.append(0.0 if abs(gap_s) < step_s else gap_s)
    gap = pd.Series(found, dtype=float).dropna()
    if gap.empty or not gap.any():
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
    mean = frame.groupby("name")[[*columns, "wan_over_allocated", "background_delay_s"]].mean()
    theirs, mine = mean.loc[peer], mean.loc[mean.index.isin(OURS), "downtime_s"].idxmin()
    ours = mean.loc[mine]
    lost = {duel.measure.column: duel for duel in losses}
    said = []
    if "downtime_s" in lost and (handover := _handover(lost["downtime_s"], mean)):
        said.append(handover)
        if "due_write_p99_s" in lost:
            said.append("a write that meets the switch waits for its end")
    if math.isnan(theirs["wan_over_allocated"]):
        if READS in lost:
            said.append("its disk stays, so that nothing is copied beside the guest's own I/O")
    elif np.isclose(theirs["independent_s"], theirs["downtime_s"], rtol=0.2, atol=0.1):
        said.append(_copied_before(theirs))
        if trips := _round_trips(lost.get("independent_s")):
            said.append(f"ours brings the rest after the switch, in {trips} round trips")
    if trips := _round_trips(lost.get(READS)):
        said.append(
            f"a block that is not here yet costs a round trip, our read p99 is {trips} of them"
        )
    if lost.keys() & {"independent_s", "relocation_from_move_s"} and ours["background_delay_s"] > 0:
        delay = draw.s(float(ours["background_delay_s"]))
        said.append(f"{mine}'s background copy was told to start {delay} after the switch")
    return f": {'; '.join(said)}" if said else ""


def _handover(duel: Duel, mean: pd.DataFrame) -> str:
    """What of a longer downtime is the handover of the disk; empty if the peer's takes longer."""
    pairs = [pair for pair in duel.of("bad") if pair.ratio is not None]
    mine, peer = pairs[0].ours, pairs[0].theirs
    took_s, theirs_s = mean.loc[mine, "handover_s"], mean.loc[peer, "handover_s"]
    if not took_s > theirs_s:
        return ""
    there = ", which is sealed at the source; there nothing is" if theirs_s < NOTHING_S else ""
    gap_s = float(np.mean([one.ours_s * (1 - one.ratio.mean) for one in pairs if one.ratio]))
    only = "" if took_s >= gap_s / 2 else f"; the other {draw.s(gap_s - took_s)} are not"
    took = draw.s(float(took_s))
    return f"of {mine}'s downtime {took} on average are the handover of the disk{there}{only}"


def _round_trips(duel: Duel | None) -> str:
    """Our figure in round trips, where the peer's is better; empty if ours has none."""
    pairs = duel.of("bad") if duel is not None else []
    found = [pair.ours_s / pair.round_trip_s for pair in pairs if not math.isnan(pair.ours_s)]
    if not found:
        return ""
    low, high = min(found), max(found)
    alike = math.isclose(low, high, rel_tol=0.05)
    return draw.times(low) if alike else f"{draw.times(low)} to {draw.times(high)}"


def _copied_before(theirs: pd.Series) -> str:
    if theirs["downtime_s"] > theirs["relocation_from_move_s"] / 2:
        stood = draw.s(float(theirs["downtime_s"]))
        return f"its disk is copied while its guest stands still, on average {stood}"
    gone = draw.s(float(theirs["relocation_from_move_s"] - theirs["independent_s"]))
    return f"its guest moves when the disk is there, on average {gone} after the move began"
