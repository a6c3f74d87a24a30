"""What the figures share: style, colours, points with intervals, words for numbers."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.analysis.estimates import Estimate, estimate
from experiments.publishing import plots

COLOURS = {
    "relocator": "#2f6fb3",
    "hybrid": "#5b9bd5",
    "seeded": "#8db9e8",
    "remote": "#c0504d",
    "stay": "#7d838c",
    "offline": "#8358a8",
    "mirror": "#2a9d6f",
    "mirror-sync": "#57b894",
    "qemu-stream": "#c98a12",
    "nbdkit-cow": "#a0522d",
    "nbdkit-cache": "#d16ba5",
    "drbd": "#4c5a9e",
    "oracle": "#22262b",
    "on-demand": "#e07b1a",
    "background": "#2f6fb3",
}
ORDER = list(COLOURS)
#: an axis that spans less than so much has ticks at these digits; else at powers of ten
SUBS = ((15, (1, 2, 5)), (60, (1, 3)))
#: room for so many there is on every axis
LEAST_TICKS = 4
KEY_WIDTH = 3.2  # inches, of what a line means
READ_OFF = "read off the paper"
UNKNOWN = "not known"


@contextmanager
def style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        sns.set_theme(context="paper", style="whitegrid", rc=plots.STYLE)
        yield


def figure(width: float, height: float) -> Figure:
    made = Figure(figsize=(width, height), layout="constrained")
    made.get_layout_engine().set(h_pad=0.06, w_pad=0.08)
    return made


def palette(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each name: a system's own where it has one, else by order."""
    spare = iter(sns.color_palette("colorblind", len(names) + 1)[1:])  # the first is our blue
    return {name: COLOURS.get(name) or next(spare) for name in names}


def ordered(names: Iterable[str]) -> list[str]:
    """Systems in their usual order, others after them as they come."""
    distinct = list(dict.fromkeys(names))
    return sorted(distinct, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def by(frame: pd.DataFrame, keys: list[str], column: str) -> dict[Any, Estimate | None]:
    """The estimate of a column over the seeds of each group."""
    groups = frame.groupby(keys if len(keys) > 1 else keys[0], sort=False)
    return {key: estimate(rows[column].tolist()) for key, rows in groups}


def point(axes: Axes, x: float, y: Estimate, colour: Any, log: bool = False) -> None:
    """A vertical estimate."""
    axes.errorbar(x, y.mean, yerr=_error(y, log), fmt="o", color=colour, capsize=3)


def bar(axes: Axes, y: float, x: Estimate, colour: Any, log: bool = False) -> None:
    """A horizontal point with its interval."""
    error = _error(x, log)
    axes.errorbar(x.mean, y, xerr=error, fmt="o", color=colour, capsize=3, markersize=6)


def _error(value: Estimate, log: bool) -> list[list[float]] | None:
    """How far the interval goes below and above the mean; None if there is one seed."""
    if value.count == 1:
        return None
    low, high = value.mean - value.low, value.high - value.mean
    if log:  # an interval that includes zero or less has no end there
        low = min(low, value.mean * 0.95)
    return [[low], [high]]


def never(axes: Axes, y: float, colour: Any, text: str = "never") -> None:
    """At the right edge, for what did not happen within the observation: with an arrow if later."""
    axes.annotate(
        text if text == UNKNOWN else f"{text} ▸",
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(-3, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=colour,
        fontsize=8.5,
    )


def switch(axes: Axes, *, labelled: bool = False) -> None:
    """The switch: where the time since it is zero. `labelled`: at the top of the panel, too."""
    axes.axvline(0, color=plots.INK, linewidth=1)
    if labelled:
        axes.annotate(
            plots.SWITCH_LABEL,
            (0, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -4),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            bbox={"facecolor": plots.PAPER, "linewidth": 0, "alpha": 0.85, "pad": 1},
        )


def log_x(axes: Axes, span: float = 10.0) -> None:
    """Once all is drawn: the x axis logarithmic, with plain numbers, at least `span` wide."""
    axes.set_xscale("log")
    axes.set_xlim(_ticks(axes.xaxis, *axes.get_xlim(), span))


def log_y(axes: Axes, span: float = 10.0) -> None:
    """The same of the y axis."""
    axes.set_yscale("log")
    axes.set_ylim(_ticks(axes.yaxis, *axes.get_ylim(), span))


def _ticks(axis: Any, low: float, high: float, span: float) -> tuple[float, float]:
    """Puts ticks on a logarithmic axis; the limits to give it."""
    if low > 0 and high / low < span:
        middle, half = math.sqrt(low * high), math.sqrt(span)
        low, high = middle / half, middle * half
    subs = next((subs for most, subs in SUBS if high / low < most), (1,))
    room = max(LEAST_TICKS, axis.get_tick_space() - 2)  # which reckons with shorter numbers
    axis.set_major_locator(LogLocator(subs=subs, numticks=room))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    return low, high


def room_for_never(axes: Axes) -> None:
    """After `log_x`: the right edge, where `never` writes, further than any point."""
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.3)


def wide_x(axes: Axes, span: float = 2.0) -> None:
    """Once all is drawn: the x axis at least `span` wide, with few ticks; from 0 if nothing is
    below it."""
    low, high = axes.get_xlim()
    if high - low < span:
        low, high = (low + high - span) / 2, (low + high + span) / 2
    panels = axes.get_shared_x_axes().get_siblings(axes)
    if low < 0 <= min(one.dataLim.x0 for one in panels):
        low, high = -0.05 * span, max(high, span)  # a point at 0 is seen whole
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def from_zero(axes: Axes) -> None:
    """Once all is drawn: the y axis from zero, with room above."""
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)


def band(
    axes: Axes,
    series: Sequence[pd.DataFrame],
    column: str,
    colour: Any,
    label: str,
    *,
    top: float = math.inf,
    log: bool = False,
    bins: bool = False,
) -> pd.DataFrame:
    """Mean over seeds of curves over `t_s`, with its 95 % t interval; what was drawn.

    `top` is the most that the values can be. `log`, for a logarithmic axis: of their logarithms,
    so that the interval of positive values is positive. `bins`: `t_s` are the middles of bins, and
    what happens at an edge is drawn there.
    """
    curves = pd.concat(series)
    values = np.log(curves[column]) if log else curves[column]
    table = values.groupby(curves["t_s"]).apply(lambda v: estimate(v.tolist()))
    table = table[table.map(lambda one: one is not None)]
    times = table.index.to_numpy(float)
    mean, low, high = (
        np.array([getattr(one, name) for one in table]) for name in ("mean", "low", "high")
    )
    if log:
        mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
    how = "steps-mid" if bins else "default"
    axes.plot(times, mean, color=colour, label=label, linewidth=1.8, drawstyle=how)
    shade = {"color": colour, "alpha": 0.1, "linewidth": 0, "step": "mid" if bins else None}
    if len(series) > 1:
        curve = axes.dataLim.frozen()  # which the axes are to fit; the shade is cut at their edges
        axes.fill_between(times, np.maximum(low, 0), np.minimum(high, top), **shade)
        axes.dataLim.set(curve)
    return pd.DataFrame({"t_s": times, "mean": mean, "low": low, "high": high})


def key(made: Figure, handles: Sequence[Any]) -> None:
    """What lines and marks mean, below the panels."""
    ncols = max(1, int(made.get_figwidth() / KEY_WIDTH))
    made.legend(handles=handles, loc="outside lower left", ncols=ncols)


def line(style: str, label: str, colour: Any = plots.INK) -> Line2D:
    """A line as it stands in a key."""
    return Line2D([], [], color=colour, linestyle=style, linewidth=1, label=label)


def png(made: Figure, caption: str) -> bytes:
    """The picture, with its clock and seeds at the top right."""
    made.suptitle(caption, x=0.995, ha="right", fontsize=8, color=plots.FAINT)
    return plots.png(made)


def s(value: float) -> str:
    """Seconds for people: ms below a second."""
    if math.isnan(value):
        return "–"
    if abs(value) < 0.9995:
        scaled = value * 1000
        return f"{scaled:.3g} ms" if abs(scaled) < 100 else f"{scaled:.0f} ms"
    return f"{value:,.0f} s" if abs(value) >= 100 else f"{value:.3g} s"


def times(value: float) -> str:
    """A ratio to two digits; to three near 1, where a difference of 10 % begins to count."""
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.3g}" if 0.8 < value < 1.25 else f"{value:.2g}"


def joined(parts: Sequence[str]) -> str:
    """a, b and c"""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def summary_table(frame: pd.DataFrame, keys: list[str], names: Sequence[str]) -> pd.DataFrame:
    """Mean, bounds and count of each metric for each group, as it goes into OUT/tables.

    The count is that of the seeds in which it happened: the mean is of those alone.
    """
    rows = []
    for key, group in frame.groupby(keys, sort=False, dropna=False):
        labels = dict(zip(keys, key if isinstance(key, tuple) else (key,), strict=True))
        row: dict[str, Any] = {k.removeprefix("axis_"): v for k, v in labels.items()}
        row["seeds"] = group["seed"].nunique()
        for name in names:
            found = estimate(group[name].tolist())
            row[name] = math.nan if found is None else found.mean
            several = found is not None and found.count > 1
            row[f"{name}_low"] = found.low if several and found else math.nan
            row[f"{name}_high"] = found.high if several and found else math.nan
            row[f"{name}_seeds"] = 0 if found is None else found.count
        rows.append(row)
    return pd.DataFrame(rows)


def binned_p99(ios: pd.DataFrame, width_s: float) -> pd.DataFrame:
    """t_s (middle of a bin) and the 99th percentile in it, of columns t_s and latency_s."""
    bins = np.floor(ios["t_s"] / width_s)
    values = ios["latency_s"].groupby(bins).quantile(0.99, interpolation="higher")
    return pd.DataFrame({"t_s": (values.index + 0.5) * width_s, "p99_s": values.to_numpy()})
