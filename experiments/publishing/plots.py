"""The figures, as PNG bytes.

A figure is a grid: one column a run, panels that share the time axis, and the same scales in every
column, so that columns, and figures drawn with the same `Scales`, compare by eye. Time is counted
from the switch. A column's title is its finding, worked out from the run, never a wish.

Drawn without pyplot (no global state, no display) and without anything that differs between two
calls: fixed style, no dates or program names in the PNG.
"""

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from experiments.analysis import series
from experiments.analysis.series import Runs
from experiments.publishing import wording
from experiments.running.rundir import Run

DPI = 120
PAPER = "#fbfaf7"  # stands as a card on a white page as well as on a dark one
INK = "#22262b"
FAINT = "#8a8f98"
COLOURS = {
    "memory copy": "#b9bec7",
    "on-demand copy": "#e07b1a",
    "background copy": "#2f6fb3",
    "remote reads": "#c0504d",
}
KINDS = {
    "read at the source": "#8358a8",
    "read at the destination": "#d1495b",
    "write": "#2a9d6f",
}
SWITCH_LABEL = "switch: the VM moves"
MARKS = (
    ("switch-started", SWITCH_LABEL, "-"),
    ("background-started", "background copy starts", "--"),
    ("relocation-complete", "all blocks present: the source may go", "-."),
)
LABELS = (
    "WAN throughput\n(KB/s)",
    "latency of each VM I/O\n(ms, log scale)",
    "blocks present\n(%)",
)
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAPER,
    "grid.color": "#e4e2dc",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Scales:
    """The axes' limits that all compared figures share; time in seconds from the switch."""

    start_s: float
    end_s: float
    wan_kb_per_s: float
    low_ms: float
    high_ms: float
    mark_rows: int


def common_scales(runs: Runs) -> Scales:
    """Limits that hold everything in all `runs`."""
    values = np.concatenate([run.latency["latency_s"].to_numpy(float) for run in runs.values()])
    values = values[values > 0] * 1000
    low, high = (values.min(), values.max()) if len(values) else (0.1, 100.0)
    return Scales(
        start_s=min(-run.switch_s for run in runs.values()),
        end_s=max(run.end_s - run.switch_s for run in runs.values()),
        wan_kb_per_s=max(run.link_bytes_per_s for run in runs.values()) / 1000 * 1.12,
        low_ms=low / 1.5,
        high_ms=high * 1.5,
        mark_rows=max(len(_marked(run)) for run in runs.values()),
    )


def relocation_figure(
    runs: Runs,
    scales: Scales,
    decorate: Callable[[Axes, Axes, Run], None] | None = None,
    caption: str | None = None,
) -> bytes:
    """E2's figure: WAN throughput, I/O latency and blocks present; a column for each run.

    `decorate` may add something to a column's throughput and latency; `caption` stands at the foot.
    """
    with style():
        columns = len(runs)
        figure = Figure(figsize=(8.6 if columns == 1 else 7.0 * columns, 8.0), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.06, w_pad=0.08)
        heights = {"height_ratios": [2.4, 3.0, 1.5]}
        grid = figure.subplots(3, columns, sharex=True, squeeze=False, gridspec_kw=heights)
        width = 74 if columns == 1 else 56
        for column, (name, run) in enumerate(runs.items()):
            axes = grid[:, column]
            axes[0].set_xlim(scales.start_s, scales.end_s)
            _heading(axes[0], run, wording.finding(name, run), scales, width)
            _throughput(axes[0], run, scales)
            _latency(axes[1], run, scales)
            _presence(axes[2], run)
            for panel in axes:
                _marks(panel, run)
            if decorate is not None:
                decorate(axes[0], axes[1], run)
            axes[2].set_xlabel("time since the switch (s)")
        for row, label in zip(grid, LABELS, strict=True):
            row[0].set_ylabel(label)
            for panel in row[1:]:
                panel.tick_params(labelleft=False)
        _legend(grid[0, -1], _throughput_legend(runs))
        _legend(grid[1, -1], _latency_legend())
        if caption is not None:
            figure.text(0.995, 0.008, caption, color=FAINT, fontsize=8, ha="right")
        return png(figure)


def links_figure(run: Run) -> bytes:
    """E1's figure: what links A, B and C carry over time."""
    edges = series.bins(0.0, run.end_s, run.switch_s)
    parts = (
        ("A", "A: VM – target, at the source"),
        ("B", "B: VM – proxy, at the destination"),
        ("C", "C: proxy – target, over the WAN"),
    )
    with style():
        figure = Figure(figsize=(8.6, 5.6), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True)
        scales = common_scales({"": run})
        panels[0].set_xlim(scales.start_s, scales.end_s)
        _heading(panels[0], run, wording.links_finding(run), scales, 74)
        tallest = 0.0
        label = {"fontweight": "bold", "zorder": 6, "bbox": {"facecolor": PAPER, "linewidth": 0}}
        for panel, (link, title) in zip(panels, parts, strict=True):
            for counter, colour in (("tx_bytes", KINDS["write"]), ("rx_bytes", "#2f6fb3")):
                rate = series.link_rate(run, link, counter, edges) / 1000
                panel.stairs(rate, edges - run.switch_s, color=colour, linewidth=1.3)
                tallest = max(tallest, float(rate.max()))
            panel.text(0.01, 0.93, title, transform=panel.transAxes, va="top", **label)
            panel.set_ylabel("KB/s")
            panel.yaxis.set_major_formatter(_thousands())
            _marks(panel, run)
        for panel in panels:
            panel.set_ylim(0, tallest * 1.3 or 1)
        panels[-1].set_xlabel("time since the switch (s)")
        handles = [
            Line2D([], [], color="#2f6fb3", label="RX: read by the VM,\nor fetched (C)"),
            Line2D([], [], color=KINDS["write"], label="TX: written by the VM,\nor requests (C)"),
        ]
        _legend(panels[1], handles)
        return png(figure)


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's own defaults, whatever the user's matplotlibrc says, and ours on top."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _heading(axes: Axes, run: Run, title: str, scales: Scales, width: int) -> None:
    """Above the top panel: the finding, and what each vertical line means."""
    rows = scales.mark_rows
    text = "\n".join(textwrap.wrap(title, width))
    axes.set_title(text, loc="left", fontsize=11.5, fontweight="bold", pad=15 * rows + 6)
    for row, (x, label, style) in enumerate(_marked(run)):
        height = 15 * (rows - row) - 6
        right = x > (scales.start_s + 2 * scales.end_s) / 3
        line = {"arrowstyle": "-", "linestyle": style, "linewidth": 1.0, "color": INK}
        place = {
            "xycoords": axes.get_xaxis_transform(),
            "textcoords": "offset points",
            "annotation_clip": False,
        }
        stem = {**line, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x, 1.0), xytext=(0, height + 4), arrowprops=stem, **place)
        axes.annotate(
            label,
            (x, 1.0),
            xytext=(-4 if right else 4, height),
            ha="right" if right else "left",
            va="center",
            fontsize=8.5,
            zorder=5,
            bbox={"facecolor": PAPER, "linewidth": 0, "pad": 1},
            **place,
        )


def _marked(run: Run) -> list[tuple[float, str, str]]:
    """(seconds since the switch, label, line style) of what happened in this run."""
    return [
        (when - run.switch_s, label, style)
        for event, label, style in MARKS
        if (when := run.time_of(event)) is not None and when < run.end_s
    ]


def _marks(axes: Axes, run: Run) -> None:
    for x, _, style in _marked(run):
        axes.axvline(x, color=INK, linewidth=1.0, linestyle=style, zorder=4)


def _throughput(axes: Axes, run: Run, scales: Scales) -> None:
    edges = series.bins(0.0, run.end_s, run.switch_s)
    below = np.zeros(len(edges) - 1)
    for name, rate in series.wan_throughput(run, edges).items():
        top = below + rate / 1000
        axes.stairs(
            top,
            edges - run.switch_s,
            baseline=below,
            fill=True,
            color=COLOURS[name],
            linewidth=0,
        )
        below = top
    capacity = run.link_bytes_per_s / 1000
    axes.axhline(capacity, color=FAINT, linewidth=1.0, linestyle=":")
    axes.set_ylim(0, scales.wan_kb_per_s)
    axes.yaxis.set_major_formatter(_thousands())


def _latency(axes: Axes, run: Run, scales: Scales) -> None:
    sides = (("source", float("-inf"), 0.0), ("destination", 0.0, float("inf")))
    for kind in ("write", "read"):
        for side, start_s, end_s in sides:
            ios = series.latencies(run, kind, series.Window(start_s, end_s))
            _cloud(axes, ios, KINDS["write" if kind == "write" else f"read at the {side}"])
    rtt_ms = run.calibration["rtt_s"] * 1000
    axes.axhline(rtt_ms, color=FAINT, linewidth=1.0, linestyle=":")
    axes.set_yscale("log")
    axes.set_ylim(scales.low_ms, scales.high_ms)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _cloud(axes: Axes, ios: pd.DataFrame, colour: str) -> None:
    """Each I/O as a faint point and the rolling median as a line."""
    latency_ms = ios["latency_s"] * 1000
    axes.plot(ios["t_s"], latency_ms, ".", color=colour, markersize=4, alpha=0.35, mew=0)
    if len(ios):
        line = series.rolling_median(ios)
        for width, shade in ((3.2, PAPER), (1.7, colour)):
            axes.plot(line["t_s"], line["latency_s"] * 1000, color=shade, linewidth=width, zorder=3)


def _presence(axes: Axes, run: Run) -> None:
    t_s, percent = series.present_percent(run)
    axes.plot(t_s - run.switch_s, percent, color=INK, linewidth=1.8)
    axes.fill_between(t_s - run.switch_s, percent, color=INK, alpha=0.08, linewidth=0)
    axes.set_ylim(0, 105)
    axes.set_yticks([0, 25, 50, 75, 100])
    if not len(t_s):
        axes.text(
            0.5,
            0.5,
            "0 %: the disk stays at the source",
            transform=axes.transAxes,
            ha="center",
            color=FAINT,
        )
        return
    axes.annotate(
        f"{percent[-1]:.0f} %",
        (t_s[-1] - run.switch_s, percent[-1]),
        xytext=(-4, -13 if percent[-1] > 50 else 5),
        textcoords="offset points",
        ha="right",
        fontweight="bold",
    )


def _throughput_legend(runs: Runs) -> list[Any]:
    names = [name for name in COLOURS if any(_carries(run, name) for run in runs.values())]
    handles: list[Any] = [Patch(color=COLOURS[name], label=name) for name in reversed(names)]
    speeds = sorted({run.link_bytes_per_s / 1000 for run in runs.values()})
    text = " / ".join(f"{speed:,.0f}" for speed in speeds)
    handles.insert(0, Line2D([], [], color=FAINT, linestyle=":", label=f"link: {text} KB/s"))
    return handles


def _carries(run: Run, name: str) -> bool:
    whole = series.wan_throughput(run, np.array([0.0, run.end_s]))
    return bool(name in whole and whole[name][0] > 0)


def _latency_legend() -> list[Any]:
    lines = [Line2D([], [], color=colour, label=label) for label, colour in KINDS.items()]
    return [
        *lines,
        Line2D([], [], color=FAINT, marker=".", linestyle="", label="point: one I/O"),
        Line2D([], [], color=FAINT, label="line: median over 2 s"),
        Line2D([], [], color=FAINT, linestyle=":", label="WAN round trip"),
    ]


def _legend(axes: Axes, handles: Sequence[Any]) -> None:
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _thousands() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{value:,.0f}")


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()
