"""All systems over round-trip times and rates, and what the summary says about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.figures import draw
from experiments.figures.evidence import Drawn, Evidence, estimate, seconds

TITLE = "All systems, over round-trip time and rate"


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
ALIKE = 1.1
KEYS = ["axis_rtt", "axis_rate"]


def compare(evidence: Evidence) -> Drawn:
    """Points by system; a row of panels for each condition, a column for each measure."""
    frame = evidence.scenario("compare")
    notes = evidence.notes("compare")
    if frame.empty:
        return Drawn(TITLE, notes=notes)
    settings = conditions(frame)
    shown = [m for m in MEASURES if frame[m.column].notna().any()]
    unknown = [m.label.replace("\n", " ") for m in MEASURES if m not in shown]
    notes += [f"Not known of any run: {', '.join(unknown)}."] if unknown else []
    names = [name for name in draw.ordered(frame["name"]) if name != "stay"]
    with draw.style():
        height = 0.85 + len(settings) * (0.5 + 0.26 * len(names))
        made = draw.figure(2.05 * len(shown) + 1.3, height)
        grid = made.subplots(len(settings), len(shown), sharex="col", sharey=True, squeeze=False)
        for row, (rtt, rate) in zip(grid, settings, strict=True):
            here = frame[(frame["axis_rtt"] == rtt) & (frame["axis_rate"] == rate)]
            for axes, measure in zip(row, shown, strict=True):
                _panel(axes, here, names, measure)
            row[0].set_title(f"{rtt}, {rate}", loc="left", fontweight="bold", fontsize=10)
        for axes, measure in zip(grid[-1], shown, strict=True):
            draw.log_x(axes) if measure.log else draw.wide_x(axes)
            axes.set_xlabel(measure.label)
        content = draw.png(made, evidence.caption("compare"))
    table = draw.summary_table(frame, [*KEYS, "name"], [m.column for m in MEASURES])
    return Drawn(TITLE, content, verdicts(frame), notes, table)


def conditions(frame: pd.DataFrame) -> list[tuple[str, str]]:
    found = frame[KEYS].drop_duplicates().itertuples(index=False)
    return sorted(found, key=lambda pair: (seconds(pair[0]), pair[1]))


def _panel(axes: Axes, here: pd.DataFrame, names: Sequence[str], measure: Measure) -> None:
    for y, name in enumerate(names):
        rows = here[here["name"] == name]
        value = estimate(rows[measure.column].tolist())
        if value is not None:
            draw.bar(axes, y, value, draw.COLOURS.get(name, "#444"), measure.log)
        elif len(rows) and measure.never:
            draw.never(axes, y, draw.COLOURS.get(name, "#444"), measure.never)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


# -- in words ------------------------------------------------------------------------------


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
    def won(self) -> list[float]:
        """The ratios that are no tie."""
        return [ratio for ratio in self.ratios if ratio >= ALIKE]


def duels(frame: pd.DataFrame, peer: str) -> list[Duel]:
    """Relocator against a peer, over the conditions in which both ran."""
    found = []
    for measure in MEASURES:
        ratios, ours_never, theirs_never = [], 0, 0
        for rtt, rate in conditions(frame):
            here = frame[(frame["axis_rtt"] == rtt) & (frame["axis_rate"] == rate)]
            sides = [here[here["name"] == name] for name in ("relocator", peer)]
            if any(side.empty for side in sides):
                continue
            ours, theirs = (estimate(side[measure.column].tolist()) for side in sides)
            if ours and theirs and measure.log and ours.mean > 0:
                ratios.append(theirs.mean / ours.mean)
            elif measure.never and ours and not theirs:
                theirs_never += 1
            elif measure.never and theirs and not ours:
                ours_never += 1
        found.append(Duel(measure, tuple(ratios), ours_never, theirs_never))
    return found


def verdicts(frame: pd.DataFrame) -> list[str]:
    """A sentence for each peer: where the relocator is better, where not, and why."""
    peers = [name for name in draw.ordered(frame["name"]) if name not in ("relocator", "stay")]
    if "relocator" not in set(frame["name"]):
        return []
    return [said for peer in peers if (said := _verdict(frame, peer))]


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
        said.append(f"relocator {draw.joined(wins)}")
    if behind:
        losses = draw.joined([_lost(duel) for duel in behind])
        said.append(f"{peer} {losses}{_why(frame, peer, behind)}")
    if mixed:
        said.append(mixed)
    return f"Against {peer}: {'. '.join(said)}." if said else ""


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
        return f"{duel.measure.better} (relocator: {duel.measure.never})"
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
    if peer not in means or "relocator" not in means:
        return ""
    gap = (means[peer] - means["relocator"]).dropna()
    if gap.empty or gap.abs().max() < 0.1:
        return ""
    low, high = draw.s(float(gap.min())), draw.s(float(gap.max()))
    if gap.min() >= 0:
        return f"{peer} loses {low if low == high else f'{low} to {high}'} more of work"
    if gap.max() <= 0:
        low, high = draw.s(float(-gap.max())), draw.s(float(-gap.min()))
        return f"relocator loses {low if low == high else f'{low} to {high}'} more of work"
    return f"{peer} loses between {low} and {high} more of work"


def _why(frame: pd.DataFrame, peer: str, losses: Sequence[Duel]) -> str:
    """What the same runs show to be the reason why a peer is ahead in these measures."""
    columns = ["downtime_s", "independent_s", "relocation_from_move_s", "handover_s"]
    mean = frame.groupby("name")[[*columns, "background_delay_s"]].mean()
    theirs, ours = mean.loc[peer], mean.loc["relocator"]
    lost = {duel.measure.column for duel in losses}
    said = []
    if "downtime_s" in lost and ours["handover_s"] > theirs["handover_s"]:
        took = draw.s(float(ours["handover_s"]))
        said.append(f"of relocator's downtime {took} on average are the handover of the disk")
    if math.isnan(theirs["independent_s"]):
        if "during_read_p99_s" in lost:
            said.append("its disk stays, so that nothing is copied beside the guest's own I/O")
    elif np.isclose(theirs["independent_s"], theirs["downtime_s"], rtol=0.2, atol=0.1):
        said.append(_copied_before(theirs, ours))
    if lost & {"independent_s", "relocation_from_move_s"} and ours["background_delay_s"] > 0:
        delay = draw.s(float(ours["background_delay_s"]))
        said.append(f"relocator's background copy was told to start {delay} after the switch")
    return f": {'; '.join(said)}" if said else ""


def _copied_before(theirs: pd.Series, ours: pd.Series) -> str:
    if theirs["downtime_s"] > 5 * ours["downtime_s"]:
        stood = draw.s(float(theirs["downtime_s"]))
        return f"its disk is copied while its guest stands still, on average {stood}"
    gone = draw.s(float(theirs["relocation_from_move_s"] - theirs["independent_s"]))
    return f"its guest moves when the disk is there, on average {gone} after the move began"
