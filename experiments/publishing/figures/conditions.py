"""What loss, size, the kind of link and the clock do to the same migration."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import pandas as pd
from matplotlib.axes import Axes

from experiments.analysis.estimates import Estimate, estimate, paired_ratio
from experiments.publishing.figures import draw
from experiments.publishing.figures.evidence import Drawn, Evidence, fraction, size_bytes

CONGESTION_TITLE = "Congestion control and loss"
SIZE_TITLE = "Cost against the disk's size"
PROFILES_TITLE = "The library of links"
LOADS_TITLE = "What the guest does"
CLOCKS_TITLE = "Real and virtual time"
#: What the WAN limits, and below it what the processor does.
WAN_COLUMNS = {
    "independent_s": "switch until the source may go",
    "copy_s": "background copy",
    "link_use": "use of the link",
    "during_read_p99_s": "read p99 meanwhile (missing blocks)",
    "wan_over_allocated": "WAN over allocated bytes",
}
PROCESSOR_COLUMNS = {
    "downtime_s": "downtime",
    "during_read_p50_s": "read p50 meanwhile (present blocks)",
    "local_read_p99_s": "local read p99",
}
CLOCK_COLUMNS = WAN_COLUMNS | PROCESSOR_COLUMNS


def congestion(evidence: Evidence) -> Drawn:
    frame, notes = evidence.scenario("congestion"), evidence.notes("congestion")
    if frame.empty:
        return Drawn(CONGESTION_TITLE, notes=notes)
    kinds = list(dict.fromkeys(frame["axis_congestion"]))
    losses = sorted(set(frame["axis_loss"]), key=fraction)
    colours = draw.palette(kinds)
    panels = {"copy_s": "background copy (s)", "during_read_p99_s": "guest read p99 meanwhile (s)"}
    with draw.style():
        made = draw.figure(9.6, 3.8)
        for axes, (column, label) in zip(made.subplots(1, 2), panels.items(), strict=True):
            found = draw.by(frame, ["axis_congestion", "axis_loss"], column)
            for shift, kind in enumerate(kinds):
                known = [(x, found.get((kind, loss))) for x, loss in enumerate(losses)]
                _line(axes, known, (shift - 1) * 0.06, colours[kind], kind, log=True)
            axes.set_xticks(range(len(losses)), losses)
            axes.set_xlim(-0.4, len(losses) - 0.6)
            draw.log_y(axes)
            axes.set_xlabel("loss each way")
            axes.set_ylabel(label)
        axes.legend()
        content = draw.png(made, evidence.caption("congestion"))
    columns = ["copy_s", "link_use", "during_read_p50_s", "during_read_p99_s", "independent_s"]
    table = draw.summary_table(frame, ["axis_loss", "axis_congestion"], columns)
    said = []
    for loss in losses:
        found = draw.by(frame[frame["axis_loss"] == loss], ["axis_congestion"], "copy_s")
        listed = [f"{kind} {draw.s(one.mean)}" for kind, one in found.items() if one]
        if listed:
            said.append(f"With a loss of {loss} the copy takes: {', '.join(listed)}.")
    return Drawn(CONGESTION_TITLE, content, said, notes, table)


def _line(
    axes: Axes,
    known: list[tuple[float, Estimate | None]],
    shift: float,
    colour: object,
    label: str,
    *,
    log: bool = False,
) -> None:
    there = [(x + shift, value) for x, value in known if value is not None]
    axes.plot([x for x, _ in there], [value.mean for _, value in there], color=colour, label=label)
    for x, value in there:
        draw.point(axes, x, value, colour, log)


def size(evidence: Evidence) -> Drawn:
    frame, notes = evidence.scenario("size"), evidence.notes("size")
    if frame.empty:
        return Drawn(SIZE_TITLE, notes=notes)
    frame = frame.assign(bytes=frame["axis_size"].map(size_bytes)).sort_values("bytes")
    panels = {
        "independent_s": "switch until the source may go (s)",
        "downtime_s": "downtime (s)",
        "during_read_p99_s": "guest read p99 meanwhile (s)",
        "wan_over_allocated": "WAN bytes over allocated",
    }
    names = draw.ordered(frame["name"])
    with draw.style():
        made = draw.figure(13.5, 3.6)
        for axes, (column, label) in zip(made.subplots(1, 4), panels.items(), strict=True):
            found = draw.by(frame, ["name", "bytes"], column)
            for name in names:
                known = [(key[1] / 2**20, one) for key, one in found.items() if key[0] == name]
                _line(axes, known, 0.0, draw.COLOURS.get(name, "#444"), name)
            axes.set_xlabel("size of the disk (MiB)")
            axes.set_ylabel(label)
            draw.from_zero(axes)
        made.axes[1].legend()
        content = draw.png(made, evidence.caption("size"))
    table = draw.summary_table(frame, ["axis_size", "name"], list(panels))
    return Drawn(SIZE_TITLE, content, _size_words(frame), notes, table)


def _size_words(frame: pd.DataFrame) -> list[str]:
    ours = frame[frame["name"] == "relocator"]
    columns = ["independent_s", "downtime_s", "wan_over_allocated", "allocated_bytes"]
    mean = ours.groupby("bytes")[columns].mean()
    if len(mean) < 2:
        return ["One size only: nothing can be said of how the cost grows."]
    small, large = mean.iloc[0], mean.iloc[-1]
    size = draw.times(mean.index[-1] / mean.index[0])
    data = draw.times(large["allocated_bytes"] / small["allocated_bytes"])
    return [
        f"A disk {size} times as large, with {data} times the data, is independent after "
        f"{draw.s(large['independent_s'])} instead of {draw.s(small['independent_s'])}; the "
        f"downtime is {draw.s(large['downtime_s'])} instead of {draw.s(small['downtime_s'])}.",
        f"Over the WAN go {large['wan_over_allocated']:.2f} times the allocated bytes "
        f"({small['wan_over_allocated']:.2f} of the small disk).",
    ]


def profiles(evidence: Evidence) -> Drawn:
    frame = evidence.scenario("profiles")
    if len(frame):
        frame = frame.sort_values(["rtt_s", "rate_bits_per_s"])
    links = frame.drop_duplicates("axis_profile").set_index("axis_profile") if len(frame) else frame
    labels = {str(name): f"{name}\n{_link(row)}" for name, row in links.iterrows()}
    return _conditions(evidence, "profiles", frame, "axis_profile", PROFILES_TITLE, labels=labels)


def _link(row: pd.Series) -> str:
    """What a run's link is like, in a few words."""
    speed = f"{row['rtt_s'] * 1e3:g} ms, {row['rate_bits_per_s'] / 1e6:g} Mbit/s"
    return f"{speed}, {row['loss']:.1%} lost" if row["loss"] else speed


def loads(evidence: Evidence) -> Drawn:
    return _conditions(evidence, "loads", evidence.scenario("loads"), "axis_load", LOADS_TITLE)


def _conditions(
    evidence: Evidence,
    scenario: str,
    frame: pd.DataFrame,
    axis: str,
    title: str,
    *,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> Drawn:
    """A row for each value of an axis, in the frame's order; a point for each system.

    `labels` are of values that don't speak for themselves.
    """
    notes = evidence.notes(scenario)
    if frame.empty:
        return Drawn(title, notes=notes)
    values = list(frame[axis].drop_duplicates())
    ends = frame.assign(end_p50_s=frame["read_p50_s_complete"].fillna(frame["read_p50_s_remote"]))
    panels = {
        "independent_s": "switch until the source may go (s)",
        "downtime_s": "downtime (s)",
        "during_read_p99_s": "guest read p99 meanwhile (s)",
        "end_p50_s": "read p50 at the end (s)",
    }
    names = draw.ordered(frame["name"])
    with draw.style():
        made = draw.figure(13.5, 1.3 + 0.5 * len(values))
        for axes, (column, label) in zip(
            made.subplots(1, 4, sharey=True), panels.items(), strict=True
        ):
            some_never = False
            for y, condition in enumerate(values):
                for shift, name in enumerate(names):
                    rows = ends[(ends[axis] == condition) & (ends["name"] == name)]
                    value = estimate(rows[column].tolist())
                    place = y + (shift - (len(names) - 1) / 2) * 0.22
                    if value is not None:
                        draw.bar(axes, place, value, draw.COLOURS.get(name, "#444"), log=True)
                    elif len(rows) and column == "independent_s":
                        draw.never(axes, place, draw.COLOURS.get(name, "#444"))
                        some_never = True
            draw.log_x(axes)
            if some_never:
                draw.room_for_never(axes)
            axes.set_xlabel(label)
            axes.set_yticks(range(len(values)), [labels.get(value, value) for value in values])
            axes.set_ylim(len(values) - 0.5, -0.5)
        for name in names:
            axes.plot([], [], "o", color=draw.COLOURS.get(name, "#444"), label=name)
        made.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=len(names))
        content = draw.png(made, evidence.caption(scenario))
    table = draw.summary_table(ends, [axis, "name"], list(panels))
    words = [text for value in values for text in _end_words(ends[ends[axis] == value], value)]
    return Drawn(title, content, words, notes, table)


def _end_words(rows: pd.DataFrame, condition: str) -> list[str]:
    """What a read takes in the end, beside that of a disk that stays behind."""
    mean = rows.groupby("name")[["end_p50_s", "independent_s"]].mean()
    if not {"relocator", "remote"} <= set(mean.index):
        return []
    far, near = mean.loc["remote", "end_p50_s"], mean.loc["relocator", "end_p50_s"]
    done = mean.loc["relocator", "independent_s"]
    if math.isnan(done) or math.isnan(near):
        return [f"{condition}: the source could not be freed while it was watched."]
    instead = (
        ", where none came back from a disk that stayed"
        if math.isnan(far)
        else f" instead of {draw.s(far)} ({draw.times(far / near)} times)"
    )
    return [
        f"{condition}: a read takes {draw.s(near)} in the end{instead}, "
        f"the source may go after {draw.s(done)}."
    ]


def clocks(evidence: Evidence) -> Drawn:
    """Real over virtual for each figure, seed by seed; 1 is agreement."""
    frame, notes = evidence.scenario("clocks"), evidence.notes("clocks")
    if frame.empty or frame["axis_clock"].nunique() < 2:
        return Drawn(CLOCKS_TITLE, notes=notes)
    names = draw.ordered(frame["name"])
    ratios = {
        (name, column): ratio
        for name in names
        for column in CLOCK_COLUMNS
        if (ratio := _real_over_virtual(frame[frame["name"] == name], column)) is not None
    }
    shown = [column for column in CLOCK_COLUMNS if any((name, column) in ratios for name in names)]
    with draw.style():
        made = draw.figure(9.6, 4.0)
        axes = made.subplots()
        axes.axvline(1, color="#444", linewidth=1)
        for shift, name in enumerate(names):
            colour = draw.COLOURS.get(name, "#444")
            for y, column in enumerate(shown):
                if (name, column) in ratios:
                    place = y + (shift - (len(names) - 1) / 2) * 0.2
                    draw.bar(axes, place, ratios[name, column], colour, log=True)
            axes.plot([], [], "o", color=colour, label=name)
        ends = sum(column in WAN_COLUMNS for column in shown)
        _divided(axes, ends - 0.5)
        axes.set_yticks(range(len(shown)), [CLOCK_COLUMNS[column] for column in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        draw.log_x(axes, 4.0)
        axes.set_xlabel("real time over virtual time")
        axes.legend()
        content = draw.png(made, evidence.caption("clocks"))
    means = {key: ratio.mean for key, ratio in ratios.items()}
    columns = list(CLOCK_COLUMNS)
    table = draw.summary_table(frame, ["name", "axis_clock"], columns)
    return Drawn(CLOCKS_TITLE, content, _clock_words(means), notes, table)


def _real_over_virtual(rows: pd.DataFrame, column: str) -> Estimate | None:
    real, virtual = (
        rows[rows["axis_clock"] == clock].set_index("seed")[column] for clock in ("real", "virtual")
    )
    return paired_ratio(real, virtual)


def _divided(axes: Axes, y: float) -> None:
    """A line between what the WAN decides and what the processor does, which is said there."""
    axes.axhline(y, color="#888", linewidth=0.8, linestyle="--")
    for text, above in (("▴ the WAN decides", 6), ("▾ the processor decides", -6)):
        axes.annotate(
            text,
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(-4, above),
            textcoords="offset points",
            ha="right",
            va="center",
            color="#666",
            fontsize=8.5,
        )


def _clock_words(ratios: dict[tuple[str, str], float]) -> list[str]:
    wan = {key: ratio for key, ratio in ratios.items() if key[1] in WAN_COLUMNS}
    far = {key: ratio for key, ratio in wan.items() if not 1 / 1.1 <= ratio <= 1.1}
    apart = f"; not {_listed(far)}" if far else ""
    near = f"{len(wan) - len(far)} of {len(wan)}"
    said = [f"Of what the WAN limits {near} figures agree within 10 %{apart}."]
    if rest := {key: ratio for key, ratio in ratios.items() if key not in wan}:
        said.append(f"What the processor limits depends in real time on this one: {_listed(rest)}.")
    return said


def _listed(ratios: dict[tuple[str, str], float]) -> str:
    return ", ".join(
        f"{CLOCK_COLUMNS[column]} of {name} ({draw.times(ratio)} times)"
        for (name, column), ratio in ratios.items()
    )
