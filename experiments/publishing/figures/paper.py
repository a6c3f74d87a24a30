"""The paper's experiments again, beside the values that could be read off it."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.analysis import measures, series
from experiments.analysis.estimates import Estimate, paired_ratio
from experiments.publishing import plots, wording
from experiments.publishing.figures import draw
from experiments.publishing.figures.evidence import Drawn, Evidence, size_bytes
from experiments.running.rundir import Run

E1_TITLE = "E1: what the links carry without background copy"
E1_C_KB_PER_S = (500.0, 3000.0)
E1_PERCENT, E1_AFTER_S = 6.5, 300.0
E2_TITLE = "E2: WAN traffic and latency over 20 ms"
E2_MEMORY_KB_PER_S, E2_BACKGROUND_KB_PER_S = 12_000.0, 2_300.0
E2_MISS_MS, E2_BEFORE_MS = 20.0, (20.0, 100.0)
E7_TITLE = "E7: blocks copied ahead of time"
E7_S = (40.0, 1500.0)
E8_TITLE = "E8: copy time by bytes in flight"
E8_REQUEST_BYTES = 31 * 4096
E8_S = {1: 13 * 60 + 58, 10: 9 * 60 + 7, 100: 5 * 60 + 58, 1000: 5 * 60 + 3}
PAPER = "#6d4c9f"


def e1(evidence: Evidence) -> Drawn:
    frame, notes = evidence.scenario("e1"), evidence.notes("e1")
    if frame.empty:
        return Drawn(E1_TITLE, notes=notes)
    run = evidence.run(frame.iloc[0])
    with draw.style():
        made = draw.figure(9.6, 7.6)
        panels = made.subplots(4, 1, sharex=True)
        edges = series.bins(0.0, run.end_s, run.switch_s)
        for axes, link in zip(panels, "ABC", strict=False):
            _link(axes, run, link, edges)
        panels[2].set_ylim(0, max(E1_C_KB_PER_S[1] * 1.1, panels[2].get_ylim()[1]))
        panels[2].axhspan(*E1_C_KB_PER_S, color=PAPER, alpha=0.1, linewidth=0)
        label = f"paper: bursts of 500 to 3,000 KB/s ({draw.READ_OFF})"
        _said(panels[2], label, 0.99)
        _presence(panels[3], run)
        panels[0].legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 1))
        panels[3].set_xlabel("time since the switch (s)")
        content = draw.png(made, evidence.caption("e1"))
    if len(frame) > 1:
        notes.append(f"Drawn: {frame.iloc[0]['cell']}.")
    return Drawn(E1_TITLE, content, _e1_words(run), notes, _rates(run))


def _link(axes: Axes, run: Run, link: str, edges: np.ndarray) -> None:
    for counter, colour, label in (
        ("rx_bytes", "#2f6fb3", "RX: the VM reads, C fetches"),
        ("tx_bytes", "#2a9d6f", "TX: the VM writes, C asks"),
    ):
        rate = series.link_rate(run, link, counter, edges) / 1000
        axes.stairs(rate, edges - run.switch_s, color=colour, label=label, linewidth=1.3)
    names = {"A": "source host – target", "B": "destination host – proxy", "C": "proxy – target"}
    axes.set_title(f"{link}: {names[link]}", loc="left", fontsize=10, fontweight="bold")
    axes.set_ylabel("KB/s")
    draw.switch(axes, labelled=link == "A")
    axes.set_ylim(bottom=0)


def _said(axes: Axes, text: str, x: float, y: float = 0.9) -> None:
    box = {"facecolor": plots.PAPER, "linewidth": 0, "alpha": 0.85, "pad": 1.5}
    place = {"transform": axes.transAxes, "va": "top", "fontsize": 8.5, "bbox": box}
    axes.text(x, y, text, color=PAPER, ha="right" if x > 0.5 else "left", **place)


def _presence(axes: Axes, run: Run) -> None:
    t_s, percent = series.present_percent(run)
    axes.plot(t_s - run.switch_s, percent, color=plots.INK, linewidth=1.8)
    end_s = run.end_s - run.switch_s
    axes.plot([0, end_s], [0, E1_PERCENT * end_s / E1_AFTER_S], color=PAPER, linestyle="--")
    _said(axes, f"paper: 0 to 6.5 % in 5 min, close to linear ({draw.READ_OFF})", 0.01)
    axes.set_title("blocks present", loc="left", fontsize=10, fontweight="bold")
    axes.set_ylabel("%")
    draw.switch(axes)
    axes.set_ylim(bottom=0)


def _rates(run: Run) -> pd.DataFrame:
    """Mean and largest rates on each link before and after the switch."""
    rows = []
    for link in "ABC":
        for counter in ("rx_bytes", "tx_bytes"):
            for when, bounds in (
                ("before", (0.0, run.switch_s)),
                ("after", (run.switch_s, run.end_s)),
            ):
                edges = np.arange(bounds[0], bounds[1] + 1e-9, 1.0)
                rate = series.link_rate(run, link, counter, edges) / 1000
                values = {"mean_kb_per_s": rate.mean(), "largest_kb_per_s": rate.max()}
                rows.append({"link": link, "counter": counter[:2], "when": when, **values})
    return pd.DataFrame(rows)


def _e1_words(run: Run) -> list[str]:
    rates = _rates(run).set_index(["link", "counter", "when"])["mean_kb_per_s"]
    peak = _rates(run).set_index(["link", "counter", "when"])["largest_kb_per_s"]
    before, after = rates["A", "tx", "before"], rates["A", "tx", "after"]
    said = [
        f"Link A carries {before:,.0f} KB/s of writes and {rates['A', 'rx', 'before']:,.0f} KB/s "
        f"of reads before the switch and {after:,.0f} KB/s of writes after it; "
        f"B goes on with {rates['B', 'tx', 'after']:,.0f} and {rates['B', 'rx', 'after']:,.0f}; "
        f"C fetches up to {peak['C', 'rx', 'after']:,.0f} KB/s, before the switch "
        f"{peak['C', 'rx', 'before']:,.0f}."
    ]
    t_s, percent = series.present_percent(run)
    if len(t_s) > 2:
        straight = np.corrcoef(t_s, percent)[0, 1] ** 2
        said.append(
            f"{percent[-1]:.1f} % of the blocks are present {run.end_s - run.switch_s:.0f} s after "
            f"the switch (a straight line explains {straight * 100:.0f} % of the curve); the "
            "paper's disk was larger, so only the shape compares."
        )
    return said


def e2(evidence: Evidence) -> Drawn:
    frame, notes = evidence.scenario("e2"), evidence.notes("e2")
    if frame.empty:
        return Drawn(E2_TITLE, notes=notes)
    wanted = [
        name for name in ("on-demand", "one-request", "relocator") if name in set(frame["name"])
    ]
    first = {name: frame[frame["name"] == name].iloc[0] for name in wanted}
    runs = {name: evidence.run(row) for name, row in first.items()}
    shown = {name: run for name, run in runs.items() if name != "on-demand"} or runs
    scales = plots.common_scales(shown)
    content = plots.relocation_figure(shown, scales, _levels, evidence.caption("e2"))
    if len(frame) > len(shown):
        notes.append(f"Drawn: {', '.join(str(first[name]['cell']) for name in shown)}.")
    columns = ["independent_s", "link_use", "during_read_p50_s", "during_read_p99_s"]
    table = draw.summary_table(frame, ["name"], columns)
    return Drawn(E2_TITLE, content, _e2_words(runs), notes, table)


def _levels(throughput: Axes, latency: Axes, _run: Run) -> None:
    for level, what in (
        (E2_MEMORY_KB_PER_S, "memory copy"),
        (E2_BACKGROUND_KB_PER_S, "background copy"),
    ):
        throughput.axhline(level, color=PAPER, linewidth=1, linestyle="--")
        throughput.annotate(
            f"paper: {what}",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(-2, -2),
            textcoords="offset points",
            ha="right",
            va="top",
            zorder=7,
            color=PAPER,
            fontsize=8,
            bbox={"facecolor": plots.PAPER, "linewidth": 0, "alpha": 0.85, "pad": 1},
        )
    latency.axhspan(*E2_BEFORE_MS, color=PAPER, alpha=0.12, linewidth=0)
    text = "paper: 20 to 100 ms (read off)"
    latency.annotate(
        text,
        (0, E2_BEFORE_MS[0]),
        xycoords=("axes fraction", "data"),
        xytext=(3, 3),
        textcoords="offset points",
        color=PAPER,
        fontsize=8,
    )


def _e2_words(runs: dict[str, Run]) -> list[str]:
    said = []
    for name, run in runs.items():
        bounds = measures.copy_bounds(run)
        miss = series.missing_block_read_s(run)
        missing = f"a missing block costs {draw.s(miss)}" if miss else "no block was missing"
        if bounds is None:
            said.append(f"{wording.title(name)}: {missing} (paper: about {E2_MISS_MS:g} ms).")
            continue
        rate = series.link_rate(run, "wan", "rx_bytes", np.array(bounds))[0] / 1000
        share = rate * 1000 / run.link_bytes_per_s
        said.append(
            f"{name}: the background copy fills {share * 100:.0f} % of the link, {rate:,.0f} KB/s, "
            f"for {draw.s(bounds[1] - bounds[0])} (paper: about {E2_BACKGROUND_KB_PER_S:,.0f} "
            f"KB/s, 19 %); {missing}."
        )
    return said


def e7(evidence: Evidence) -> Drawn:
    frame, notes = evidence.scenario("e7"), evidence.notes("e7")
    if frame.empty:
        return Drawn(E7_TITLE, notes=notes)
    known = ("none", "preseed", "return", "seeded", "mirror-sync")
    names = [name for name in known if name in set(frame["name"])]
    found = draw.by(frame, ["name"], "independent_s")
    base = found.get("none")
    colours = {"none": "#2f6fb3", "preseed": "#7fb2ea", "return": "#a9cdf2", "seeded": "#8db9e8"}
    colours["mirror-sync"] = draw.COLOURS["mirror-sync"]
    with draw.style():
        made = draw.figure(10.4, 3.0)
        left, right = made.subplots(1, 2, gridspec_kw={"width_ratios": [1, 1.15]})
        for y, name in enumerate(names):
            value = found[name]
            if value is not None:
                error = [[value.mean - value.low], [value.high - value.mean]]
                xerr = error if value.count > 1 else None
                left.barh(y, value.mean, 0.6, xerr=xerr, color=colours[name], capsize=3)
                left.annotate(f" {draw.s(value.mean)}", (value.mean, y), va="center", fontsize=9)
                if base is not None:
                    share = value.mean / base.mean
                    right.barh(y, share, 0.6, color=colours[name])
                    right.annotate(f" {draw.times(share)} ×", (share, y), va="center", fontsize=9)
        for y, (value_s, text) in enumerate(zip(E7_S[::-1], ("over", "under"), strict=True)):
            place = len(names) + y
            right.barh(place, value_s / E7_S[1], 0.6, color=PAPER, alpha=0.55)
            right.annotate(
                f" {text} {value_s:,.0f} s", (value_s / E7_S[1], place), va="center", fontsize=9
            )
        _bars(left, names, "switch until the source may go (s)")
        paper = [f"paper, {what}\n({draw.READ_OFF})" for what in ("none", "preseed")]
        _bars(right, [*names, *paper], "relative to no pre-seed")
        right.set_xlim(0, 1.25 * max(1.0, right.dataLim.xmax))
        content = draw.png(made, evidence.caption("e7"))
    columns = ["independent_s", "relocation_from_move_s", "downtime_s", "wan_over_allocated"]
    table = draw.summary_table(frame, ["name"], columns)
    return Drawn(E7_TITLE, content, _e7_words(frame), notes, table)


def _bars(axes: Axes, names: list[str], label: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")


def _e7_words(frame: pd.DataFrame) -> list[str]:
    """Seed by seed, as everything that is compared."""
    none, seeded = (
        frame[frame["name"] == name].set_index("seed")["independent_s"]
        for name in ("none", "preseed")
    )
    ratio = paired_ratio(none, seeded)
    if ratio is None:
        return []
    sooner = "sooner" if ratio.mean >= 1 else "later"
    often = draw.times(max(ratio.mean, 1 / ratio.mean))
    return [
        f"From the switch the disk is independent after {draw.s(float(seeded.mean()))} "
        f"instead of {draw.s(float(none.mean()))} if its blocks were copied ahead of time, "
        f"{often} times {sooner} (paper: over {int(E7_S[1] / E7_S[0])} times)."
    ]


def e8(evidence: Evidence) -> Drawn:
    frame, notes = evidence.scenario("e8"), evidence.notes("e8")
    frame = frame[frame["copy_s"].notna()] if len(frame) else frame
    if frame.empty:
        return Drawn(E8_TITLE, notes=notes)
    found = {
        key: value for key, value in draw.by(frame, ["axis_window"], "copy_s").items() if value
    }
    windows = [key for key in found if key != "auto"]
    fixed = sorted((size_bytes(key), found[key]) for key in windows)
    scale = found[_one_request(windows) if windows else "auto"].mean
    with draw.style():
        made = draw.figure(8.6, 4.4)
        axes = made.subplots()
        axes.plot(
            [size / 1024 for size, _ in fixed],
            [value.mean / scale for _, value in fixed],
            color=draw.COLOURS["relocator"],
            label="relocator, by its window",
        )
        for size, value in fixed:
            scaled = value.scaled(1 / scale)
            draw.point(axes, size / 1024, scaled, draw.COLOURS["relocator"])
        if "auto" in found:
            auto = found["auto"].mean / scale
            axes.axhline(
                auto, color=draw.COLOURS["relocator"], linestyle=":", label="relocator, window=auto"
            )
        sizes = [count * E8_REQUEST_BYTES / 1024 for count in E8_S]
        relative = [value / E8_S[1] for value in E8_S.values()]
        axes.plot(sizes, relative, "s--", color=PAPER, label=f"paper, 30 GiB ({draw.READ_OFF})")
        for size, y, value in zip(sizes, relative, E8_S.values(), strict=True):
            text = f"{value // 60}:{value % 60:02d}"
            axes.annotate(
                text, (size, y), xytext=(4, 5), textcoords="offset points", color=PAPER, fontsize=8
            )
        draw.from_zero(axes)
        axes.set_xlabel("bytes in flight (KiB)")
        axes.set_ylabel("copy time, relative to about 124 KiB")
        draw.log_x(axes)
        axes.legend()
        content = draw.png(made, evidence.caption("e8"))
    table = draw.summary_table(frame, ["axis_window"], ["copy_s", "link_use", "during_read_p99_s"])
    return Drawn(E8_TITLE, content, _e8_words(found), notes, table)


def _e8_words(found: dict[str, Estimate]) -> list[str]:
    times = {key: value.mean for key, value in found.items()}
    fixed = [key for key in times if key != "auto"]
    if len(times) == 1 or not fixed:
        (only,) = times
        return [f"The copy takes {draw.s(times[only])} with window={only}, the only one that ran."]
    one, fast = _one_request(fixed), min(times, key=times.__getitem__)
    often = draw.times(times[one] / times[fast])
    said = [
        f"The copy takes {draw.s(times[one])} with window={one}, about one request of the paper's, "
        f"and {draw.s(times[fast])} with window={fast}: {often} times less. The paper's takes "
        f"13:58 and, with more of them, 5:03: {draw.times(E8_S[1] / min(E8_S.values()))} times."
    ]
    if "auto" in times:
        said.append(f"window=auto takes {draw.s(times['auto'])}.")
    return said


def _one_request(windows: Iterable[str]) -> str:
    """The window that is nearest to one request of the paper's."""
    return min(windows, key=lambda one: abs(math.log(size_bytes(one) / E8_REQUEST_BYTES)))
