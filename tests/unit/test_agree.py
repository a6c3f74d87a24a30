"""Whether a new evaluation agrees with a published one, decided on small tables."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.analysis import agree, metrics

BASE: dict[str, Any] = {
    **dict.fromkeys(metrics.columns()),
    "scenario": "compare",
    "axes": "rtt=20ms",
    "name": "relocator",
    "system": "relocator",
    "clock": "virtual",
    "outcome": "ok",
    "seed": 1,
    "downtime_s": 0.05,
    "independent_s": 10.0,
}


def row(**more: Any) -> metrics.Row:
    made = {**BASE, **more}
    return {**made, "cell": f"{made['scenario']}/{made['axes']}/{made['name']}/s{made['seed']}"}


@pytest.fixture
def agreed(tmp_path: Path) -> Any:
    """Compares two lists of rows: exit status."""

    def run(published: list[metrics.Row], new: list[metrics.Row]) -> int:
        for name, rows in (("published", published), ("new", new)):
            (tmp_path / name).mkdir(exist_ok=True)
            metrics.write(tmp_path / name / "metrics.csv", rows)
        return agree.main([str(tmp_path / "published"), str(tmp_path / "new" / "metrics.csv")])

    return run


def test_equal_tables_are_identical(agreed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert agreed([row()], [row()]) == 0
    assert "1 cells, 15 figures: 15 identical, 0 agrees, 0 differs" in capsys.readouterr().out


def test_seeds_that_only_one_has_are_no_difference(
    agreed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    three = [row(), row(seed=2, independent_s=30.0), row(seed=3, independent_s=50.0)]
    assert agreed(three, [row()]) == 0
    assert "15 identical" in capsys.readouterr().out
    assert agreed(three, [row(seed=4, independent_s=90.0)]) == 1


def test_a_small_difference_agrees(agreed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert agreed([row()], [row(independent_s=10.5)]) == 0
    assert "1 agrees" in capsys.readouterr().out


def test_a_large_difference_names_cell_and_metric(
    agreed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agreed([row()], [row(independent_s=14.0)]) == 1
    said = capsys.readouterr().out
    assert "differs: compare/rtt=20ms/relocator: independent_s: 10 published, 14 now" in said


def several(metric: str, *values: float) -> list[metrics.Row]:
    return [row(seed=seed, **{metric: value}) for seed, value in enumerate(values, 1)]


def test_intervals_of_three_seeds_that_overlap_excuse_three_tolerances(agreed: Any) -> None:
    published = several("independent_s", 10.0, 12.0, 14.0)
    assert agreed(published, several("independent_s", 12.0, 15.0, 18.0)) == 0
    assert agreed(published, several("independent_s", 14.0, 20.0, 26.0)) == 1


def test_an_interval_of_two_seeds_excuses_nothing(agreed: Any) -> None:
    assert agreed(several("copy_s", 1.0, 2.0), several("copy_s", 10.0, 20.0)) == 1
    assert agreed(several("copy_s", 10.0, 10.2), several("copy_s", 10.4, 10.6)) == 0


def test_a_short_time_that_is_thrice_as_long_differs(agreed: Any) -> None:
    assert agreed([row(independent_s=0.09)], [row(independent_s=0.27)]) == 1
    assert agreed([row(independent_s=0.09)], [row(independent_s=0.10)]) == 0
    assert agreed([row(lost_work_s=0.3)], [row(lost_work_s=1.2)]) == 1


def test_what_the_guests_writes_wait_is_compared(agreed: Any) -> None:
    assert agreed([row(during_write_p99_s=0.02)], [row(during_write_p99_s=0.9)]) == 1


def test_a_seed_that_ended_well_on_one_side_only_differs(
    agreed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = {"outcome": "failed", "reason": "a write was lost"}
    mostly = [row(), row(seed=2, **lost)]
    assert agreed([row(), row(seed=2)], mostly) == 1
    assert "outcome: went well, now a write was lost (seed 2)" in capsys.readouterr().out
    assert agreed(mostly, [row(), row(seed=2)]) == 1
    assert "outcome: a write was lost, now went well (seed 2)" in capsys.readouterr().out
    assert agreed([row(**lost)], [row()]) == 1, "what was found is not found again"
    assert agreed(mostly, mostly) == 0
    assert agreed(mostly, [row()]) == 0, "the second seed was not run"


def test_another_experiment_of_the_same_name_differs(
    agreed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agreed([row(fill_bytes=40 << 20)], [row(fill_bytes=24 << 20)]) == 1
    assert "conditions: fill_bytes 41943040 published, 25165824 now" in capsys.readouterr().out


def test_a_table_of_an_older_version_is_compared_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics.write(tmp_path / "new.csv", [row(handover_s=0.03)])
    known = pd.read_csv(tmp_path / "new.csv").drop(columns=["handover_s", "wan_memory_bytes"])
    known.to_csv(tmp_path / "old.csv", index=False)
    assert agree.main([str(tmp_path / "old.csv"), str(tmp_path / "new.csv")]) == 0
    said = capsys.readouterr().out
    assert "not known in both, not compared: handover_s" in said and "14 identical" in said
    known.drop(columns="outcome").to_csv(tmp_path / "old.csv", index=False)
    assert agree.main([str(tmp_path / "old.csv"), str(tmp_path / "new.csv")]) == 2
    assert "these columns are missing: outcome" in capsys.readouterr().err


def test_narrow_intervals_apart_differ(agreed: Any) -> None:
    narrow = [row(seed=1, independent_s=10.0), row(seed=2, independent_s=10.01)]
    other = [row(seed=1, independent_s=13.0), row(seed=2, independent_s=13.01)]
    assert agreed(narrow, other) == 1


def test_never_and_once_differ_but_never_twice_does_not(agreed: Any) -> None:
    assert agreed([row(recovered_s=3.0)], [row()]) == 1
    assert agreed([row()], [row()]) == 0


def test_on_the_real_clock_nothing_is_called_identical(
    agreed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agreed([row(clock="real")], [row(clock="real")]) == 0
    assert "2 agrees" in capsys.readouterr().out


def test_a_run_that_failed_since_differs(agreed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {key: value for key, value in row().items() if key not in agree.METRICS}
    assert agreed([row()], [{**broken, "outcome": "failed", "reason": "a read failed"}]) == 1
    assert "outcome: went well, now a read failed" in capsys.readouterr().out


def test_cells_of_one_side_are_named_and_do_not_count(
    agreed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agreed([row(), row(name="mirror")], [row(), row(name="remote")]) == 0
    said = capsys.readouterr().out
    assert "only in PUBLISHED, not compared: compare/rtt=20ms/mirror" in said
    assert "only in NEW, not compared: compare/rtt=20ms/remote" in said


def test_nothing_in_common_is_no_agreement(agreed: Any) -> None:
    assert agreed([row()], [row(name="remote")]) == 2


def test_a_missing_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert agree.main([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 2
    assert "a.csv" in capsys.readouterr().err
