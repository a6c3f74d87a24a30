"""What is said about a run in words and figures: titles that state findings, numbers with units.

Every sentence here is computed; where the data do not support it a plainer one is said.
"""

from collections.abc import Mapping, Sequence

from experiments.analysis import series
from experiments.analysis.series import Row, Runs, Windows
from experiments.running.rundir import Run

TITLES = {
    "remote": "Plain remote disk",
    "on-demand": "On-demand copy alone",
    "background": "With background copy",
}
ALIKE = 1.5  # so much longer a read may take to take as long
SCALE = {"ms": 1e3, "s": 1.0, "MB": 1e-6}


def title(name: str) -> str:
    """The run's name for people."""
    return TITLES.get(name, name)


def number(value: float, unit: str) -> str:
    """`value` in base units as about three digits in `unit` (ms, s or MB), without the unit; two
    below 0.1 ms, where the third is noise and differs between two windows of one run."""
    scaled = value * SCALE[unit]
    if scaled >= 100:
        return f"{scaled:,.0f}"
    if unit == "ms" and 0.001 <= scaled < 0.1:
        return f"{scaled:#.2g}"
    return f"{scaled:#.3g}" if scaled >= 0.001 else "0"


def quantity(value: float, unit: str) -> str:
    return f"{number(value, unit)} {unit}"


def cell(row: Row, name: str) -> str:
    value = row.values[name]
    return row.absent if value is None else number(value, row.unit)


def finding(name: str, run: Run) -> str:
    """The title of a run's column in E2's figure: one sentence."""
    missing = series.missing_block_read_s(run)
    read = f"a read of a missing block takes {quantity(missing, 'ms')}" if missing else ""
    since_s = run.end_s - run.switch_s
    if not run.relocates:
        cost = f"every read crosses the WAN: {quantity(missing, 'ms')}" if missing else "no reads"
        return f"{title(name)}: {cost}, as long as the VM runs"
    done = run.independent_s
    if done is None:
        here = series.present_at(run, since_s)
        return (
            f"{title(name)}: {read or 'blocks come as they are read'}; "
            f"{here:.0f} % of the disk is here {since_s:.0f} s after the switch"
        )
    after = series.percentile_s(run, "read", 50, series.Window(done, float("inf")))
    then = f"; from then on a read takes {quantity(after, 'ms')}" if after is not None else ""
    return f"{title(name)}: all of the disk is here {done:.0f} s after the switch{then}"


def links_finding(run: Run) -> str:
    """The title of E1's figure."""
    after = run.end_s - run.switch_s
    late = series.link_bytes(run, "A", run.switch_s + 1.0, run.end_s)
    early = series.link_bytes(run, "A", 0.0, run.switch_s)
    onward = series.link_bytes(run, "B", run.switch_s, run.end_s)
    if early > 0 and late < early * 0.01 and onward > 0:
        return "At the switch the VM's I/O moves from A to B; C carries what is missing"
    return f"What links A, B and C carry, {after:.0f} s after the switch included"


def conclusion(runs: Runs, windows: Windows) -> str:
    """What a reader should take away, in a sentence; empty if no run shows it."""
    speed = series.background_speed(runs)
    if speed is None:
        return ""
    run = runs[speed["run"]]
    before, end = (
        series.percentile_s(run, "read", 50, window) for window in (windows.before, windows.end)
    )
    if before is None or end is None or run.independent_s is None:
        return ""
    alike = "as before the move" if end <= before * ALIKE else "more than before the move"
    return (
        f"With both, the whole disk has arrived {run.independent_s:.0f} s after the switch: the "
        f"source may be switched off, and a read takes {quantity(end, 'ms')}, {alike} "
        f"({quantity(before, 'ms')}). Without them every read of a block that stayed behind costs "
        "a round trip, however long one waits."
    )


def summary_sentences(runs: Runs, windows: Windows) -> list[str]:
    """The page's first paragraph: how long a read takes, before, and then in each run."""
    first = next(iter(runs.values()))
    before = series.percentile_s(first, "read", 50, windows.before)
    said = []
    if before is not None:
        said.append(
            f"While the VM is at the source half of its reads take {quantity(before, 'ms')}."
        )
    for name, run in runs.items():
        after, end = (
            series.percentile_s(run, "read", 50, window) for window in (windows.after, windows.end)
        )
        if after is None or end is None:
            continue
        done = run.independent_s
        late = f"{windows.end.end_s:.0f} s later"
        reads = f"{quantity(after, 'ms')} after the switch and {quantity(end, 'ms')} {late}"
        if not run.relocates:
            how = f"{title(name)}: {reads}; the VM needs the source for ever."
        elif done is None:
            here = series.present_at(run, windows.end.end_s)
            how = f"{title(name)}: {reads}; {here:.0f} % of the disk has arrived by then."
        else:
            how = f"{title(name)}: {reads}; {done:.1f} s after the switch the source is free to go."
        said.append(how)
    return said


def speed_sentence(runs: Runs) -> str | None:
    """Background copy against nbdcopy."""
    speed = series.background_speed(runs)
    if speed is None:
        return None
    return (
        f"background copy {megabits(speed['background_bits_per_s'])}, "
        f"nbdcopy in the same run {megabits(speed['nbdcopy_bits_per_s'])}: "
        f"{speed['ratio'] * 100:.1f} % of nbdcopy's speed "
        f"({speed['pipe_ratio'] * 100:.1f} % with the on-demand copy that shared the link)"
    )


def megabits(bits_per_s: float) -> str:
    return f"{bits_per_s / 1e6:.1f} Mbit/s"


def wan(run: Run) -> str:
    """The link in words."""
    asked = run.parameters
    rtt_ms, speed = asked["rtt_s"] * 1000, asked["rate_bits_per_s"] / 1e6
    return f"a link of {speed:g} Mbit/s with a round trip of {rtt_ms:g} ms"


def markdown(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The comparison as a Markdown table; the best of a row in bold."""
    lines = [
        f"| | {' | '.join(title(name) for name in names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for row in rows:
        cells = (
            f"**{cell(row, name)}**" if name in row.best else cell(row, name) for name in names
        )
        note = f" ({row.note})" if row.note else ""
        lines.append(f"| {row.label}, {row.unit}{note} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def csv_table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The comparison as CSV in base units (seconds and bytes); empty: never, or not measured."""
    lines = [",".join(["measure", "unit", *names])]
    for row in rows:
        unit = "bytes" if row.unit == "MB" else "s"
        values = (row.values[name] for name in names)
        cells = ("" if value is None else f"{value:.9g}" for value in values)
        lines.append(",".join([f'"{row.label}"', unit, *cells]))
    return "\n".join(lines) + "\n"


def failed_checks(runs: Mapping[str, Run]) -> list[str]:
    return [
        f"{name}: {check['name']}: {check['detail']}"
        for name, run in runs.items()
        for check in run.checks
        if not check["ok"]
    ]


def key_figures(runs: Runs, windows: Windows) -> list[tuple[str, str, str]]:
    """(figure, what it is, in comparison with what) for the top of the page."""
    tiles = []
    speed = series.background_speed(runs)
    if speed is not None:
        run = runs[speed["run"]]
        done = run.independent_s
        tiles.append((f"{done:.1f} s", "until the source may be switched off", "from the switch"))
        ours, theirs = speed["background_bits_per_s"], speed["nbdcopy_bits_per_s"]
        against = (
            f"{megabits(ours)} against {megabits(theirs)}, the guest's own fetches not counted"
        )
        tiles.append(
            (
                f"{speed['ratio'] * 100:.0f} %",
                "of the speed of nbdcopy, the plain copying tool, over the same link",
                against,
            )
        )
        before, end = (
            series.percentile_s(run, "read", 50, window) for window in (windows.before, windows.end)
        )
        if before is not None and end is not None:
            what = f"the median read at the end; {quantity(before, 'ms')} before the switch"
            missing = series.missing_block_read_s(run)
            far = f"{quantity(missing, 'ms')} for a missing block" if missing else ""
            tiles.append((quantity(end, "ms"), what, far))
        tiles.append((quantity(run.summary["downtime_s"], "ms"), "downtime at the switch", ""))
    failed, count = failed_checks(runs), sum(len(run.checks) for run in runs.values())
    kinds = "checksums, e2fsck, acknowledged writes and more"
    tiles.append((f"{count - len(failed)} of {count}", "checks passed", kinds))
    return tiles


def parameters(run: Run) -> dict[str, str]:
    """The run's parameters, by their names without units, as people write them."""
    return dict(_parameter(key, value) for key, value in sorted(run.parameters.items()))


def _parameter(key: str, value: object) -> tuple[str, str]:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}={one}" for name, one in value.items()) or None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return key.replace("_", " "), "none" if value in (None, "") else str(value)
    if key.endswith("_bits_per_s"):
        return key.removesuffix("_bits_per_s").replace("_", " "), f"{value / 1e6:g} Mbit/s"
    if key.endswith("_bytes"):
        return key.removesuffix("_bytes").replace("_", " "), f"{value / 2**20:g} MiB"
    if key.endswith("_s"):
        text = f"{value * 1000:g} ms" if 0 < value < 1 else f"{value:g} s"
        return key.removesuffix("_s").replace("_", " "), text
    return key.replace("_", " "), f"{value:g}"


def calibration(run: Run) -> dict[str, str]:
    """What the link measured before the run, against what was asked for."""
    measured = run.calibration
    nbdcopy = measured["nbdcopy"]
    rows = {
        "round trip": f"{measured['rtt_s'] * 1000:.3f} ms, "
        f"{_off(measured['rtt_error'])} {measured['rtt_expected_s'] * 1000:g} ms"
    }
    for key, label in (
        ("to_destination", "to the destination"),
        ("to_source", "to the source"),
    ):
        way = measured[key]
        expected = megabits(way["expected_bits_per_s"])
        rows[f"payload {label}"] = f"{megabits(way['bits_per_s'])}, {_off(way['error'])} {expected}"
    if nbdcopy is not None:
        rows["nbdcopy over this link"] = (
            f"{nbdcopy['data_bytes'] / 2**20:.1f} MiB in {nbdcopy['copy_s']:.2f} s: "
            f"{megabits(nbdcopy['bits_per_s'])}"
        )
    return rows


def _off(error: float) -> str:
    return f"{error * 100:+.2f} % from"
