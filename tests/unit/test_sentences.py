"""What the page says of figures made by hand: also where they are not as one would like them."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd

from experiments.analysis import metrics, series
from experiments.publishing import evaluation, wording
from experiments.publishing.figures import (
    ablations,
    conditions,
    draw,
    pairs,
    paper,
    programs,
    systems,
)
from experiments.publishing.figures.evidence import Evidence
from experiments.running.rundir import load_run
from tests.support.synthetic_run import Synthetic, write_run


def of(column: str, **values: list[float]) -> pd.DataFrame:
    """A row for each seed of each of these systems."""
    rows = [
        {"name": name, "seed": seed, column: value}
        for name, seeds in values.items()
        for seed, value in enumerate(seeds, 1)
    ]
    return pd.DataFrame(rows)


def test_what_copying_ahead_is_worth_is_told_seed_by_seed() -> None:
    (said,) = paper._e7_words(of("independent_s", none=[1.0, 100.0], preseed=[0.1, 10.0]))
    assert "10 times sooner (paper: over 37 times)" in said, "1500 s over 40 s"
    (said,) = paper._e7_words(of("independent_s", none=[1.0, 100.0], preseed=[0.1]))
    assert "10 times sooner" in said, "the second seed has no pair"
    (said,) = paper._e7_words(of("independent_s", none=[1.0], preseed=[2.0]))
    assert "2 times later" in said
    assert paper._e7_words(of("independent_s", none=[1.0])) == []


def test_more_work_lost_is_not_a_negative_relief() -> None:
    columns = {"on-demand": [0.4], "background": [0.5]}
    frame = of("lost_work_s", **columns).assign(during_read_p50_s=0.001)
    said = programs._e4_words(frame, list(columns))
    assert said[-1] == "Background copy doesn't relieve it: 25 % more work lost."


def test_orders_that_were_never_fast_again_are_named() -> None:
    frame = of("recovered_s", oracle=[0.1], random=[math.nan]).assign(miss_s=[1.0, math.nan])
    said = ablations._order_words(frame, ["oracle", "random"])
    assert said == [
        "The guest meets missing blocks for (miss ratio summed over time): oracle 1 s, random not "
        "seen.",
        "Reads are as before the move after: oracle 100 ms, random not seen.",
    ]


def test_a_disk_that_never_came_has_no_times_at_the_end() -> None:
    frame = of("end_p50_s", relocator=[math.nan], remote=[0.02]).assign(independent_s=math.nan)
    assert conditions._end_words(frame, "satellite") == [
        "satellite: the source could not be freed while it was watched."
    ]


def test_clocks_are_compared_seed_by_seed(tmp_path: Path) -> None:
    base = dict.fromkeys(metrics.columns(), None) | {"scenario": "clocks", "outcome": "ok"}
    base |= {"name": "relocator", "system": "relocator"}
    rows = [
        {**base, "cell": f"{clock}/{seed}", "axes": f"clock={clock}", "clock": clock, **more}
        for clock, seed, copy_s in (("real", 1, 1.0), ("real", 2, 90.0), ("virtual", 1, 1.0))
        for more in ({"seed": seed, "copy_s": copy_s},)
    ]
    metrics.write(tmp_path / "metrics.csv", rows)
    said = conditions.clocks(Evidence(tmp_path)).sentences
    assert said == ["Of what the WAN limits 1 of 1 figures agree within 10 %."]


def test_reads_that_stay_slow_are_not_as_before_the_move(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", Synthetic()))
    runs = {"background": run}
    windows = series.common_windows(runs)
    assert ", as before the move (" in wording.conclusion(runs, windows)
    late = run.latency["t_s"] > run.switch_s
    latency_s = run.latency["latency_s"].where(~late, run.latency["latency_s"] * 10)
    slow = {"background": replace(run, latency=run.latency.assign(latency_s=latency_s))}
    assert ", more than before the move (" in wording.conclusion(slow, windows)


def test_a_copy_that_never_ended_is_named_where_its_time_would_have_been(tmp_path: Path) -> None:
    base = dict.fromkeys(metrics.columns(), None)
    base |= {"scenario": "e8", "system": "relocator", "outcome": "ok", "background": "on"}
    base |= {"clock": "virtual", "seed": 1, "wan_over_allocated": 0.4}
    rows = [
        {**base, "cell": f"e8/{axes}/{name}", "axes": axes, "name": name, **more}
        for axes, name, more in (
            ("window=64K", "relocator", {}),
            ("window=auto", "relocator", {"independent_s": 3.0}),
            ("window=auto", "on-demand", {"background": "off"}),
            ("window=auto", "remote", {"wan_over_allocated": None}),
        )
    ]
    metrics.write(tmp_path / "metrics.csv", rows)
    said = [note for note in Evidence(tmp_path).notes("e8") if note.startswith("Never")]
    assert said == [
        "Never: relocator at window=64K: the source could not be freed while it was watched."
    ]


def test_a_table_says_of_how_many_seeds_a_mean_is() -> None:
    frame = of("recovered_s", relocator=[1.0, 3.0, math.nan], remote=[math.nan] * 3)
    table = draw.summary_table(frame, ["name"], ["recovered_s"])
    assert table["recovered_s_seeds"].tolist() == [2, 0]
    _, _, ours, theirs = evaluation.markdown(table).splitlines()
    assert ours == "| relocator | 3 | 2 (-10.71 to 14.71) in 2 of 3 |"
    assert theirs == "| remote | 3 | – |"


def test_a_figure_tells_what_came_late_from_what_is_not_known() -> None:
    (measure,) = (one for one in pairs.MEASURES if one.column == "recovered_s")
    frame = of("recovered_s", hybrid=[1.0], remote=[math.nan], mirror=[math.nan])
    frame = frame.assign(slow_until_s=[1.0, 3.9, 0.1])
    axes = draw.figure(4, 4).subplots()
    systems._panel(axes, frame, ["hybrid", "remote", "mirror"], measure)
    assert [text.get_text() for text in axes.texts] == ["not seen ▸", "not known"]


def test_a_median_is_not_of_those_alone_that_got_there() -> None:
    frame = of("independent_s", relocator=[1.0, math.nan, math.nan]).assign(
        scenario="compare", outcome="ok", downtime_s=0.1, wan_over_allocated=1.0, link_use=0.9
    )
    assert not any("the source may go" in what for _, what in evaluation.tiles(frame))
    frame.loc[1, "independent_s"] = 2.0
    assert ("2 s", "from the switch until the source may go, median") in evaluation.tiles(frame)
