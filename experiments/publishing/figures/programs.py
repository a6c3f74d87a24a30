"""Programs that do something: a mail server's load, a compile, databases, a repository."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.analysis.estimates import estimate
from experiments.publishing.figures import draw
from experiments.publishing.figures.evidence import Drawn, Evidence
from experiments.running.rundir import Run

E4_TITLE = "E4: a mail server's load"
REAL_TITLE = "Real programs while the disk moves"
BIN_S = 2.0
ONE_PROCESSOR = (
    "One emulated processor is guest, source and destination: what the proxy computes when it "
    "starts, before the switch, is taken from a guest that computes."
)


def e4(evidence: Evidence) -> Drawn:
    """I/Os a second over time, and the latency after the switch."""
    frame, notes = evidence.scenario("e4"), evidence.notes("e4")
    if frame.empty:
        return Drawn(E4_TITLE, notes=notes)
    names = draw.ordered(frame["name"])
    colours = draw.palette(names)
    with draw.style():
        made = draw.figure(11.5, 4.2)
        left, right = made.subplots(1, 2, gridspec_kw={"width_ratios": [1.6, 1]})
        switch_s = _switch_s(evidence, frame)
        for name in names:
            runs = [evidence.run(row) for _, row in frame[frame["name"] == name].iterrows()]
            series = [_rate(run, switch_s) for run in runs]
            draw.band(left, series, "per_s", colours[name], name, bins=True)
        draw.switch(left, labelled=True)
        left.set_xlabel("time since the switch (s)")
        left.set_ylabel(f"I/Os a second, bins of {BIN_S:g} s")
        draw.from_zero(left)
        left.legend()
        moved = [name for name in names if name != "stay"]
        for y, name in enumerate(moved):
            rows = frame[frame["name"] == name]
            for column, marker in (("during_read_p50_s", -0.12), ("during_read_p99_s", 0.12)):
                value = estimate(rows[column].tolist())
                if value is not None:
                    draw.bar(right, y + marker, value, colours[name], log=True)
        draw.log_x(right)
        right.set_yticks(range(len(moved)), moved)
        right.set_ylim(len(moved) - 0.5, -0.5)
        right.set_xlabel("read p50 (above) and p99 (below) meanwhile (s)")
        content = draw.png(made, evidence.caption("e4"))
    columns = ["lost_work_s", "during_read_p50_s", "during_read_p99_s", "independent_s"]
    table = draw.summary_table(frame, ["name"], columns)
    return Drawn(E4_TITLE, content, _e4_words(frame, names), notes, table)


def _switch_s(evidence: Evidence, frame: pd.DataFrame) -> float:
    """When the first of the others switched, for the run that never does."""
    moved = frame[frame["system"] != "stay"]
    return evidence.run(moved.iloc[0]).switch_s if len(moved) else 0.0


def _rate(run: Run, switch_s: float) -> pd.DataFrame:
    """I/Os a second in bins since the switch, without the bin that the end cuts."""
    at = run.switch_s if run.moves else switch_s
    kinds = run.latency["kind"].isin(["read", "write"])
    bins = np.floor((run.latency[kinds]["t_s"] - at) / BIN_S)
    counted = bins.value_counts()
    last = np.floor((run.end_s - at) / BIN_S)
    inside = np.arange(np.ceil(-at / BIN_S), last)
    per_s = counted.reindex(inside, fill_value=0) / BIN_S
    return pd.DataFrame({"t_s": (inside + 0.5) * BIN_S, "per_s": per_s.to_numpy(float)})


def _e4_words(frame: pd.DataFrame, names: list[str]) -> list[str]:
    said = []
    lost = draw.by(frame, ["name"], "lost_work_s")
    reads = draw.by(frame, ["name"], "during_read_p50_s")
    for name in names:
        work, half = lost.get(name), reads.get(name)
        if name == "stay" or half is None:
            continue
        less = f", and {draw.s(work.mean)} of work are lost against staying" if work else ""
        said.append(f"{name}: half of the reads take {draw.s(half.mean)} or more{less}.")
    by_seed = frame.pivot_table(index="seed", columns="name", values="lost_work_s")
    if {"on-demand", "background"} <= set(by_seed):
        mean = by_seed[["on-demand", "background"]].dropna().mean()
        if mean["on-demand"] > 0:
            relieved = 1 - mean["background"] / mean["on-demand"]
            verb = "relieves" if relieved > 0.02 else "doesn't relieve"
            less = "less" if relieved >= 0 else "more"
            said.append(f"Background copy {verb} it: {abs(relieved) * 100:.0f} % {less} work lost.")
    return said


def real(evidence: Evidence) -> Drawn:
    """Work lost by program and system, and work done over time."""
    frame, notes = evidence.scenario("real"), evidence.notes("real")
    if frame.empty:
        return Drawn(REAL_TITLE, notes=notes)
    programs = list(dict.fromkeys(frame["axis_program"]))
    with draw.style():
        made = draw.figure(4.6 * len(programs) + 1, 6.2)
        grid = made.subplots(
            2, len(programs), squeeze=False, gridspec_kw={"height_ratios": [1.6, 1]}
        )
        for column, program in enumerate(programs):
            rows = frame[frame["axis_program"] == program]
            names = draw.ordered(rows["name"])
            _done(grid[0, column], evidence, rows, names)
            grid[0, column].set_title(program, loc="left", fontweight="bold", fontsize=11)
            moved = [name for name in names if name != "stay"]
            for y, name in enumerate(moved):
                value = estimate(rows[rows["name"] == name]["lost_work_s"].tolist())
                if value is not None:
                    draw.bar(grid[1, column], y, value, draw.COLOURS.get(name, "#444"))
            grid[1, column].axvline(0, color="#22262b", linewidth=1)
            grid[1, column].set_yticks(range(len(moved)), moved)
            grid[1, column].set_ylim(len(moved) - 0.5, -0.5)
            grid[1, column].set_xlabel("work lost (s)")
        grid[0, 0].set_ylabel("units of work done")
        grid[0, 0].legend()
        free = "all blocks present: the source may go"
        draw.key(made, [draw.line("-", "switch, of each run its own"), draw.line("-.", free)])
        content = draw.png(made, evidence.caption("real"))
    notes.append(
        "Above: the first seed of each, by the time since its own switch, of stay since that of "
        "the first that moved; below: all seeds."
    )
    notes.append(ONE_PROCESSOR)
    columns = ["lost_work_s", "during_read_p99_s", "downtime_s", "independent_s"]
    table = draw.summary_table(frame, ["axis_program", "name"], columns)
    return Drawn(REAL_TITLE, content, _real_words(frame, programs), notes, table)


def _done(axes: Axes, evidence: Evidence, rows: pd.DataFrame, names: list[str]) -> None:
    """Units of work ended since the workloads began, by the time since each run's own switch."""
    for name in names:
        run = evidence.run(rows[rows["name"] == name].iloc[0])
        at = run.switch_s if run.moves else _switch_s(evidence, rows)
        ends = np.sort(run.work["end_s"].to_numpy(float))
        times, counts = np.array([0.0, *ends, run.end_s]), [0, *range(1, len(ends) + 1), len(ends)]
        colour = draw.COLOURS.get(name, "#444")
        axes.step(times - at, counts, where="post", color=colour, label=name)
        done = run.independent_s
        if done is not None:
            axes.axvline(done, color="#22262b", linewidth=0.8, linestyle="-.")
    draw.switch(axes)
    axes.set_xlabel("time since the switch (s)")


def _real_words(frame: pd.DataFrame, programs: list[str]) -> list[str]:
    said = []
    for program in programs:
        found = draw.by(frame[frame["axis_program"] == program], ["name"], "lost_work_s")
        listed = [f"{name} {draw.s(one.mean)}" for name, one in found.items() if one]
        if listed:
            said.append(f"{program}: work lost by {draw.joined(listed)}.")
    return said
