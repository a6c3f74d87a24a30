"""Rates, windows and the comparison, against figures worked out by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.analysis import series
from experiments.analysis.series import Row, Runs, Window
from experiments.running.rundir import load_run
from tests.support.synthetic_run import Synthetic, write_run

VARIANTS = {
    "remote": Synthetic(system="remote", background=False),
    "on-demand": Synthetic(background=False),
    "background": Synthetic(),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root: Path = tmp_path_factory.mktemp("runs")
    return {name: load_run(write_run(root / name, made)) for name, made in VARIANTS.items()}


def test_a_rate_is_the_counters_difference_over_the_bins_width() -> None:
    t_s, counter = np.array([0.0, 1.0, 2.0, 4.0]), np.array([100.0, 100.0, 300.0, 300.0])
    edges = np.array([0.0, 1.0, 1.5, 2.0, 3.0])
    assert series.rate_bytes_per_s(t_s, counter, edges).tolist() == [0, 200, 200, 0]


def test_no_byte_is_lost_or_counted_twice_by_binning() -> None:
    random = np.random.default_rng(7)
    t_s = np.sort(random.uniform(0, 60, 500))
    counter = np.cumsum(random.integers(0, 9999, 500)).astype(float)
    edges = np.linspace(-1, 61, 100)
    rate = series.rate_bytes_per_s(t_s, counter, edges)
    assert (rate * np.diff(edges)).sum() == pytest.approx(counter[-1] - counter[0])


def test_a_counter_without_samples_has_no_rate() -> None:
    nothing = np.array([])
    assert series.rate_bytes_per_s(nothing, nothing, np.array([0.0, 1.0])).tolist() == [0]


def test_bins_have_an_edge_at_the_anchor_and_stay_inside() -> None:
    edges = series.bins(0.0, 70.0, 26.03)
    assert np.isclose(edges, 26.03).any()
    assert edges[0] >= 0 and edges[-1] <= 70
    assert np.allclose(np.diff(edges), 0.5)
    assert len(series.bins(0.0, 3600.0, 26.03)) <= 241


def test_link_c_is_divided_between_on_demand_and_background(runs: Runs) -> None:
    run = runs["background"]
    edges = series.bins(0.0, run.end_s, run.switch_s)
    parts = series.wan_throughput(run, edges)
    whole = series.link_rate(run, "C", "rx_bytes", edges)
    assert np.allclose(parts["on-demand copy"] + parts["background copy"], whole)
    started = run.time_of("background-started")
    assert started is not None
    assert parts["background copy"][edges[1:] < started].sum() == 0
    assert parts["background copy"].max() > 0.9 * run.link_bytes_per_s


def test_without_a_background_copy_all_of_link_c_is_on_demand(runs: Runs) -> None:
    run = runs["on-demand"]
    parts = series.wan_throughput(run, series.bins(0.0, run.end_s, run.switch_s))
    assert parts["background copy"].sum() == 0
    assert parts["on-demand copy"].sum() > 0


def test_a_remote_disk_shows_its_reads_on_the_wan(runs: Runs) -> None:
    run = runs["remote"]
    parts = series.wan_throughput(run, series.bins(0.0, run.end_s, run.switch_s))
    assert set(parts) == {"memory copy", "remote reads"}
    assert parts["remote reads"].sum() > 0


def test_blocks_stay_present_after_the_last_sample(runs: Runs) -> None:
    t_s, percent = series.present_percent(runs["background"])
    assert percent[-1] == 100
    assert t_s[-1] == runs["background"].end_s
    assert series.present_at(runs["background"], 40.0) == 100
    assert series.present_at(runs["remote"], 40.0) == 0
    assert 0 < series.present_at(runs["on-demand"], 40.0) < 50


def test_windows_are_the_same_for_all_runs(runs: Runs) -> None:
    windows = series.common_windows(runs)
    assert windows.before == Window(-26.0, -8.0)
    assert windows.after == Window(0.0, 11.0)
    assert windows.end == Window(33.0, 44.0)
    assert windows.whole == Window(0.0, 44.0)


def test_a_rolling_median_ignores_an_outlier() -> None:
    ios = pd.DataFrame({"t_s": [0.0, 0.1, 0.2, 0.3, 0.4], "latency_s": [1.0, 1.0, 99.0, 1.0, 1.0]})
    assert series.rolling_median(ios)["latency_s"].tolist() == [1.0] * 5


def test_a_missing_block_costs_about_a_round_trip(runs: Runs) -> None:
    missing = series.missing_block_read_s(runs["on-demand"])
    assert missing is not None
    assert 0.020 < missing < 0.025


def test_a_window_without_io_has_no_percentile(runs: Runs) -> None:
    nowhere = Window(1000.0, 1001.0)
    assert series.percentile_s(runs["background"], "read", 99, nowhere) is None
    assert series.compile_cycle_s(runs["background"], nowhere) is None


def test_the_best_of_a_row_are_the_lowest_and_what_equals_them() -> None:
    assert Row("x", "s", {"a": 1.0, "b": 1.01, "c": 2.0}).best == {"a", "b"}
    assert Row("x", "s", {"a": None, "b": None, "c": 2.0}).best == {"c"}


def test_nothing_is_best_where_all_are_alike_or_ranking_is_senseless() -> None:
    assert Row("x", "s", {"a": 1.0, "b": 1.0}).best == frozenset()
    assert Row("x", "s", {"a": None, "b": None}).best == frozenset()
    assert Row("x", "s", {"a": 1.0, "b": 2.0}, ranked=False).best == frozenset()


def test_the_comparison_says_who_needs_the_source_for_ever(runs: Runs) -> None:
    rows = {row.label: row for row in series.comparison(runs, series.common_windows(runs))}
    independent = rows["Switch until independent of the source"]
    assert independent.best == {"background"}
    assert independent.values["remote"] is None
    assert "remote, on-demand" in rows["Over the WAN for the disk"].note
    ends = rows["Read latency p50, at the end"].values
    assert ends["background"] is not None and ends["remote"] is not None
    assert ends["background"] < ends["remote"] / 10


def test_the_background_copys_speed_is_compared_within_one_run(runs: Runs) -> None:
    speed = series.background_speed(runs)
    assert speed is not None
    assert speed["run"] == "background"
    assert speed["ratio"] == pytest.approx(
        speed["background_bits_per_s"] / speed["nbdcopy_bits_per_s"]
    )
    assert series.background_speed({"remote": runs["remote"]}) is None


def test_what_a_mirror_sends_before_the_guest_is_background_copy(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "mirror", Synthetic(system="mirror")))
    parts = series.wan_throughput(run, series.bins(0.0, run.end_s, run.switch_s))
    assert parts["on-demand copy"].sum() == 0
