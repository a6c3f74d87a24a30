"""E1's and E2's figures with a real guest: its memory and its disk apart, and its downtime."""

import pandas as pd

from experiments.analysis import series
from experiments.analysis.estimates import estimate
from experiments.publishing import plots
from experiments.publishing.figures import draw
from experiments.publishing.figures.evidence import Drawn, Evidence, seconds
from experiments.running.rundir import Run

TITLE = "E1 and E2 with a real guest: QEMU migrates it live"
LINKS = {
    "memory": "memory: VM host – VM host, QEMU's precopy",
    "A": "A: source host – target",
    "B": "B: destination host – proxy",
    "C": "C: proxy – target",
}
COLUMNS = ["downtime_s", "handover_s", "independent_s", "wan_memory_bytes", "wan_disk_bytes"]


def guest(evidence: Evidence) -> Drawn:
    """Links of one run over time, and the latency of its I/O."""
    frame, notes = evidence.scenario("guest"), evidence.notes("guest")
    ours = frame[frame["name"] == "relocator"]
    if ours.empty:
        return Drawn(TITLE, notes=notes)
    run = evidence.run(ours.iloc[0])
    with draw.style():
        made = draw.figure(9.6, 9.6)
        panels = made.subplots(len(LINKS) + 1, 1, sharex=True)
        for axes, (link, name) in zip(panels, LINKS.items(), strict=False):
            _link(axes, run, link, name)
        panels[0].legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1))
        _latency(panels[-1], run)
        panels[-1].set_xlabel("time since the switch (s)")
        content = draw.png(made, evidence.caption("guest"))
    notes.append(f"Drawn: {ours.iloc[0]['cell']}.")
    table = draw.summary_table(frame, ["axis_rtt", "name"], COLUMNS)
    return Drawn(TITLE, content, _words(frame), notes, table)


def _link(axes: plots.Axes, run: Run, link: str, name: str) -> None:
    edges = series.bins(0.0, run.end_s, run.switch_s)
    for counter, colour, label in (
        ("rx_bytes", "#2f6fb3", "RX: to the destination, or read"),
        ("tx_bytes", "#2a9d6f", "TX: from it, or written"),
    ):
        rate = series.link_rate(run, link, counter, edges) / 1000
        axes.stairs(rate, edges - run.switch_s, color=colour, label=label, linewidth=1.3)
    axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
    axes.set_ylabel("KB/s")
    draw.switch(axes, labelled=link == "memory")
    axes.set_ylim(bottom=0)


def _latency(axes: plots.Axes, run: Run) -> None:
    for kind, colour in (("read", "#8358a8"), ("write", "#2a9d6f")):
        ios = series.latencies(run, kind)
        axes.plot(ios["t_s"], ios["latency_s"] * 1000, ".", color=colour, label=kind, markersize=3)
    draw.switch(axes)
    draw.log_y(axes)
    axes.set_ylabel("ms")
    axes.set_title("latency of each I/O of the guest", loc="left", fontsize=10, fontweight="bold")
    axes.legend(loc="upper right", ncols=2)


def _words(frame: pd.DataFrame) -> list[str]:
    """Downtime and traffic of each system at each round trip."""
    said = []
    for rtt in sorted(set(frame["axis_rtt"]), key=seconds):
        parts = []
        for name in draw.ordered(frame["name"]):
            rows = frame[(frame["axis_rtt"] == rtt) & (frame["name"] == name)]
            found = estimate(rows["downtime_s"].tolist())
            if found is not None:
                parts.append(f"{name} {draw.s(found.mean)}")
        said.append(f"The guest stands still at a round trip of {rtt}: {', '.join(parts)}.")
    return said
