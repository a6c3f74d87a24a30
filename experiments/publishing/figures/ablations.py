"""What the order of the copy and its pacing are worth, and what a failing link does."""

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from experiments.analysis import measures, series
from experiments.analysis.estimates import estimate
from experiments.publishing import plots
from experiments.publishing.figures import draw
from experiments.publishing.figures.evidence import Drawn, Evidence
from experiments.running.rundir import Run

ORDERING_TITLE = "Orders of the background copy"
PACING_TITLE = "Pacing of the background copy"
OUTAGE_TITLE = "The WAN fails in the middle of the copy"
P99_BIN_S = 2.0
ORDERS = (
    *("oracle", "relocator", "recent", "hot", "in-use"),
    *("sequential+pull", "sequential", "random"),
)
ORDER_COLOURS = {
    "recent": "#e6ab02",
    "hot": "#1b9e77",
    "in-use": "#d1495b",
    "sequential+pull": "#8358a8",
    "sequential": "#7a4a21",
    "random": "#9aa0a8",
}
FAILING = "#b3261e"


def ordering(evidence: Evidence) -> Drawn:
    """Miss ratio and p99 over the time since the switch, and when reads are as before."""
    frame, notes = evidence.scenario("ordering"), evidence.notes("ordering")
    if frame.empty:
        return Drawn(ORDERING_TITLE, notes=notes)
    names = sorted(set(frame["name"]), key=lambda n: ORDERS.index(n) if n in ORDERS else 9)
    colours = draw.palette(names) | ORDER_COLOURS
    free = frame["independent_s"].dropna()
    runs = {name: [evidence.run(row) for _, row in _of(frame, name)] for name in names}
    last_s = _until(frame)
    with draw.style():
        made = draw.figure(13.5, 4.2)
        left, middle, right = made.subplots(1, 3, gridspec_kw={"width_ratios": [1.3, 1.3, 1]})
        for name in names:
            series = [s for run in runs[name] if (s := measures.miss_series(run)) is not None]
            if series:
                draw.band(left, series, "miss_ratio", colours[name], name, top=1.0)
            tails = [_tail(run) for run in runs[name]]
            in_ms = [tail.assign(p99_ms=tail["p99_s"] * 1000) for tail in tails]
            draw.band(middle, in_ms, "p99_ms", colours[name], name, log=True)
        left.set_ylabel("miss ratio, bins of 1 s")
        middle.set_ylabel(f"read p99 (ms), bins of {P99_BIN_S:g} s")
        draw.log_y(middle)
        for axes in (left, middle):
            axes.set_xlim(0, last_s)
            axes.set_xlabel("time since the switch (s)")
            if len(free):
                span = {"color": plots.FAINT, "alpha": 0.3, "label": "the source may go"}
                axes.axvspan(free.min(), free.max(), **span)
        left.set_ylim(0, 1.05)
        left.legend(frameon=True, facecolor=plots.PAPER, edgecolor="none", framealpha=1)
        _times(right, frame, names, colours)
        content = draw.png(made, evidence.caption("ordering"))
    columns = ["miss_s", "miss_ratio", "recovered_s", "independent_s", "during_read_p99_s"]
    table = draw.summary_table(frame, ["name"], columns)
    return Drawn(ORDERING_TITLE, content, _order_words(frame, names), notes, table)


def _of(frame: pd.DataFrame, name: str) -> list[tuple[object, pd.Series]]:
    return list(frame[frame["name"] == name].iterrows())


def _until(frame: pd.DataFrame) -> float:
    """As far as there is something to see: a little after the last independence."""
    last = frame["independent_s"].max()
    return float(frame["observed_s"].max() if pd.isna(last) else last * 1.15 + 1)


def _tail(run: Run) -> pd.DataFrame:
    after = series.Window(measures.switch_done_s(run) - run.switch_s, float("inf"))
    return draw.binned_p99(series.latencies(run, "read", after), P99_BIN_S)


def _times(axes: Axes, frame: pd.DataFrame, names: list[str], colours: dict[str, object]) -> None:
    for y, name in enumerate(names):
        rows = frame[frame["name"] == name]
        value, free = (estimate(rows[key].tolist()) for key in ("recovered_s", "independent_s"))
        if free is not None:
            axes.plot(free.mean, y, "|", color=colours[name], markersize=10, mew=1.5)
        if value is None:
            draw.never(axes, y, colours[name], draw.UNKNOWN)
        else:
            draw.bar(axes, y, value, colours[name])
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(
        "switch until the read p99 is within\n2 x local (●), and the source may go (|) (s)"
    )


def _order_words(frame: pd.DataFrame, names: list[str]) -> list[str]:
    mean = frame.groupby("name")[["miss_s", "recovered_s"]].mean()

    def listed(column: str) -> str:
        values = mean[column]
        return ", ".join(
            f"{name} {'not seen' if pd.isna(values[name]) else draw.s(values[name])}"
            for name in names
        )

    known = mean["miss_s"].dropna()
    if known.empty:
        return ["On this link a miss can't be told from a local read."]
    sums = listed("miss_s")
    said = [f"The guest meets missing blocks for (miss ratio summed over time): {sums}."]
    if "oracle" in known and len(known) > 1 and known["oracle"] > 0:
        best = known.drop("oracle").idxmin()
        ratio = known[best] / known["oracle"]
        said.append(
            f"The best order that doesn't know the future is {best}, {draw.times(ratio)} times the "
            "oracle's."
        )
    if mean["recovered_s"].notna().any():
        said.append(f"Reads are as before the move after: {listed('recovered_s')}.")
    return said


def pacing(evidence: Evidence) -> Drawn:
    """The copy's use of the link against what the guest waits."""
    frame, notes = evidence.scenario("pacing"), evidence.notes("pacing")
    frame = frame[frame["link_use"].notna()] if len(frame) else frame
    if frame.empty:
        return Drawn(PACING_TITLE, notes=notes)
    names = list(dict.fromkeys(frame["name"]))
    colours = draw.palette(names)
    use, wait = (draw.by(frame, ["name"], key) for key in ("link_use", "read_p99_s_background"))
    names = [name for name in names if use[name] is not None and wait[name] is not None]
    rtt_ms = float(frame["rtt_s"].iloc[0]) * 1000
    with draw.style():
        made = draw.figure(9.6, 0.9 + 0.4 * len(names))
        left, right = made.subplots(1, 2, sharey=True)
        for y, name in enumerate(names):
            draw.bar(left, y, use[name].scaled(100), colours[name])
            draw.bar(right, y, wait[name].scaled(1000), colours[name], log=True)
        right.axvline(rtt_ms, color=plots.FAINT, linestyle=":", label="round trip")
        right.legend(loc="upper right")
        left.set_xlim(0, 102)
        draw.log_x(right)
        left.set_yticks(range(len(names)), names)
        left.set_ylim(len(names) - 0.5, -0.5)
        left.set_xlabel("share of the link used during the copy (%)")
        right.set_xlabel("guest's read p99 meanwhile (ms)")
        content = draw.png(made, evidence.caption("pacing"))
    columns = ["copy_s", "link_use", "read_p50_s_background", "read_p99_s_background"]
    table = draw.summary_table(frame, ["name"], [*columns, "lost_work_s"])
    said = [
        f"{name}: {use[name].mean * 100:.0f} % of the link, read p99 {draw.s(wait[name].mean)} "
        f"({wait[name].mean * 1000 / rtt_ms:.1f} round trips)."
        for name in names
    ]
    return Drawn(PACING_TITLE, content, said, notes, table)


def outage(evidence: Evidence) -> Drawn:
    """Each read's latency over time, the cut shaded; a column for each event."""
    frame, notes = evidence.scenario("outage"), evidence.notes("outage")
    if frame.empty:
        return Drawn(OUTAGE_TITLE, notes=notes)
    events, names = list(dict.fromkeys(frame["axis_event"])), draw.ordered(frame["name"])
    said = []
    with draw.style():
        made = draw.figure(max(6.0, 3.4 * len(events)) + 0.8, 0.8 + 2.7 * len(names))
        grid = made.subplots(len(names), len(events), sharex=True, sharey=True, squeeze=False)
        for row, name in zip(grid, names, strict=True):
            for axes, event in zip(row, events, strict=True):
                cell = frame[(frame["name"] == name) & (frame["axis_event"] == event)]
                if len(cell):
                    run = evidence.run(cell.iloc[0])
                    _failing(axes, run)
                    said.append(_outage_words(run, event, name, len(cell)))
                else:
                    axes.text(0.5, 0.5, "no run", transform=axes.transAxes, ha="center")
                axes.set_title(f"{name}, {event}", loc="left", fontsize=10, fontweight="bold")
            row[0].set_ylabel("each read's latency (s)")
        for axes in grid[-1]:
            axes.set_xlabel("time since the switch (s)")
        draw.key(made, _outage_key())
        content = draw.png(made, evidence.caption("outage"))
    notes.append("Drawn: the first seed of each.")
    columns = ["during_read_max_s", "during_read_p99_s", "independent_s", "recovered_s"]
    table = draw.summary_table(frame, ["axis_event", "name"], columns)
    return Drawn(OUTAGE_TITLE, content, said, notes, table)


def _failing(axes: Axes, run: Run) -> None:
    ios = series.latencies(run, "read", series.Window(-2.0, float("inf")))
    axes.plot(
        ios["t_s"], ios["latency_s"], ".", color=draw.COLOURS["relocator"], markersize=4, mew=0
    )
    draw.log_y(axes)
    for start_s, end_s in cuts(run):
        axes.axvspan(start_s, end_s, color=FAILING, alpha=0.15, linewidth=0)
    for at_s in changes(run):
        axes.axvline(at_s, color=FAILING, linestyle="--", linewidth=1)
    draw.switch(axes)
    done = run.independent_s
    if done is not None:
        axes.axvline(done, color=plots.INK, linestyle="-.", linewidth=1)


def _outage_key() -> list[Artist]:
    return [
        draw.line("-", "switch"),
        Patch(color=FAILING, alpha=0.15, linewidth=0, label="the link is cut"),
        draw.line("--", "the link becomes slower or longer", FAILING),
        draw.line("-.", "all blocks present: the source may go"),
    ]


def cuts(run: Run) -> list[tuple[float, float]]:
    """When nothing got through, in seconds since the switch."""
    found, began = [], None
    for event in run.events:
        if event["event"] == "link-changed" and "cut" in event:
            if event["cut"] and began is None:
                began = event["t_s"]
            elif not event["cut"] and began is not None:
                found.append((began - run.switch_s, event["t_s"] - run.switch_s))
                began = None
    return found + ([(began - run.switch_s, run.end_s - run.switch_s)] if began is not None else [])


def changes(run: Run) -> list[float]:
    """When the link became another, other than by a cut, in seconds since the switch."""
    events = (event for event in run.events if event["event"] == "link-changed")
    return [event["t_s"] - run.switch_s for event in events if "cut" not in event]


def _outage_words(run: Run, event: str, name: str, seeds: int) -> str:
    reads = series.latencies(run, "read", series.Window(0.0, float("inf")))
    longest = draw.s(float(reads["latency_s"].max())) if len(reads) else "–"
    good = all(check["ok"] for check in run.checks)
    errors = f"no I/O error, all {len(run.checks)} checks passed" if good else "checks FAILED"
    lasted = sum(end_s - start_s for start_s, end_s in cuts(run))
    cut = f" (cut for {draw.s(lasted)})" if lasted else ""
    done = run.independent_s
    ended = "the source could not be freed while it was watched"
    ended = ended if done is None else f"the source may go after {draw.s(done)}"
    more = f", in the first of {seeds} seeds" if seeds > 1 else ""
    return f"{name}, {event}{cut}: longest read {longest}; {ended}; {errors}{more}."
