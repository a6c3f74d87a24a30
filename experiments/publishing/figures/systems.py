"""All systems over round-trip times and rates."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from experiments.analysis.estimates import estimate
from experiments.publishing.figures import draw
from experiments.publishing.figures.duels import KEYS, conditions
from experiments.publishing.figures.evidence import Drawn, Evidence
from experiments.publishing.figures.pairs import MEASURES, Measure
from experiments.publishing.figures.verdicts import verdicts

TITLE = "All systems, over round-trip time and rate"


def compare(evidence: Evidence) -> Drawn:
    """Points by system; a row of panels for each condition, a column for each measure."""
    frame = evidence.scenario("compare")
    notes = evidence.notes("compare")
    if frame.empty:
        return Drawn(TITLE, notes=notes)
    settings, bad = conditions(frame), evidence.failed("compare")
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
            lost = bad[(bad["axis_rtt"] == rtt) & (bad["axis_rate"] == rate)] if len(bad) else bad
            for name in set(lost["name"]) & set(names) - set(here["name"]):
                draw.never(row[0], names.index(name), draw.COLOURS.get(name, "#444"), "failed")
            row[0].set_title(f"{rtt}, {rate}", loc="left", fontweight="bold", fontsize=10)
        for axes, measure in zip(grid[-1], shown, strict=True):
            draw.log_x(axes) if measure.log else draw.wide_x(axes)
            axes.set_xlabel(measure.label)
        content = draw.png(made, evidence.caption("compare"))
    columns = [*(m.column for m in MEASURES), "during_read_p99_s", "during_write_p99_s"]
    table = draw.summary_table(frame, [*KEYS, "name"], columns)
    return Drawn(TITLE, content, verdicts(frame), notes, table)


def _panel(axes: Axes, here: pd.DataFrame, names: Sequence[str], measure: Measure) -> None:
    means = here.groupby("name")[measure.column].mean()
    for y, name in enumerate(names):
        rows = here[here["name"] == name]
        value = estimate(rows[measure.column].tolist())
        if value is not None:
            draw.bar(axes, y, value, draw.COLOURS.get(name, "#444"), measure.log)
        elif len(rows) and measure.never:
            soonest = rows["observed_s"] / 2 if math.isnan(means.min()) else means.min()
            late = (rows[measure.until] >= soonest).all()
            text = measure.never if late else draw.UNKNOWN
            draw.never(axes, y, draw.COLOURS.get(name, "#444"), text)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
