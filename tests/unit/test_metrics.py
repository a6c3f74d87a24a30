"""One row a run, against figures worked out by hand or known from how the run was made."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from experiments.analysis import measures, metrics
from experiments.running.rundir import Run, RunError, load_run
from tests.support.synthetic_run import Synthetic, write_run

SHORT = {
    "allocated_bytes": 24 << 20,
    "memory_copy_at_s": 6.0,
    "switch_at_s": 8.0,
    "background_delay_s": 2.0,
    "duration_s": 24.0,
}
SYSTEMS = ("relocator", "remote", "stay", "offline", "mirror", "qemu-stream")
AXES = "rtt=20ms,rate=100mbit"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, metrics.Row]:
    """The table of one run of each system and a failed one, by the system's name in the cell."""
    root: Path = tmp_path_factory.mktemp("runs")
    for system in SYSTEMS:
        write_run(root / "compare" / AXES / system / "s1", Synthetic(system=system, **SHORT))
    write_run(root / "compare" / AXES / "broken" / "s1", Synthetic(outcome="failed", **SHORT))
    return {str(row["name"]): row for row in metrics.table(root)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(write_run(tmp_path_factory.mktemp("one") / "run", Synthetic(**SHORT)))


def with_reads(run: Run, reads: list[tuple[float, float]]) -> Run:
    """The run with these reads (end, latency) and no other I/O."""
    table = pd.DataFrame(reads, columns=["t_s", "latency_s"])
    return replace(run, latency=table.assign(kind="read", offset_bytes=0))


def steady(start_s: float, count: int, latency_s: float) -> list[tuple[float, float]]:
    return [(start_s + i * 0.01, latency_s) for i in range(count)]


def test_a_row_says_which_cell_it_is(rows: dict[str, metrics.Row]) -> None:
    row = rows["mirror"]
    assert row["cell"] == f"compare/{AXES}/mirror/s1"
    assert (row["scenario"], row["axes"], row["seed"]) == ("compare", AXES, 1)
    assert (row["system"], row["clock"], row["outcome"]) == ("mirror", "virtual", "ok")


def test_a_failed_run_is_a_row_with_its_reason_and_no_figures(
    rows: dict[str, metrics.Row],
) -> None:
    row = rows["broken"]
    assert (row["outcome"], row["reason"]) == ("failed", "checksums: 3 files differ")
    assert not set(row) & set(metrics.MEASURES)


def test_downtime_and_independence_are_where_the_copy_was(rows: dict[str, metrics.Row]) -> None:
    copy_s = (24 << 20) * 8 / (100e6 * 0.94)
    assert rows["offline"]["downtime_s"] == pytest.approx(0.045 + copy_s, rel=0.01)
    assert rows["mirror"]["downtime_s"] == pytest.approx(0.045)
    assert rows["mirror"]["relocation_from_move_s"] == pytest.approx(copy_s + 2.055, rel=0.01)
    assert rows["relocator"]["independent_s"] == pytest.approx(2.045 + copy_s, rel=0.2)
    assert rows["remote"]["independent_s"] is None
    assert "downtime_s" not in rows["stay"]


def test_a_remote_disk_never_recovers_and_a_relocated_one_does(
    rows: dict[str, metrics.Row],
) -> None:
    assert rows["remote"]["recovered_s"] is None
    recovered, independent = (rows["relocator"][key] for key in ("recovered_s", "independent_s"))
    assert isinstance(recovered, float) and isinstance(independent, float)
    assert 2 < recovered <= independent + 0.1


def test_lost_work_is_counted_against_the_run_that_stayed(rows: dict[str, metrics.Row]) -> None:
    lost = {name: rows[name]["lost_work_s"] for name in ("relocator", "remote", "mirror")}
    assert isinstance(lost["remote"], float) and isinstance(lost["relocator"], float)
    assert lost["remote"] > 8
    assert 0 < lost["relocator"] < lost["remote"]
    assert "lost_work_s" not in rows["stay"]


def test_the_copy_uses_the_link_as_it_was_made_to(rows: dict[str, metrics.Row]) -> None:
    assert rows["relocator"]["link_use"] == pytest.approx(0.94 * 1.045, rel=0.1)
    assert rows["remote"]["link_use"] is None


def test_latency_and_rate_are_there_for_each_phase(rows: dict[str, metrics.Row]) -> None:
    row = rows["relocator"]
    assert row["read_p99_s_source"] == pytest.approx(0.00075, rel=0.3)
    assert row["read_per_s_on_demand"] == pytest.approx(50, rel=0.02)
    assert row["write_per_s_complete"] == pytest.approx(20, rel=0.05)
    assert "read_p99_s_remote" not in row


def test_a_miss_is_a_read_of_nine_tenths_of_a_round_trip(run: Run) -> None:
    rtt = run.calibration["rtt_s"]
    reads = [*steady(1, 60, 0.001), (9.0, rtt * 0.89), (9.2, rtt * 0.91), (10.6, 0.001)]
    series = measures.miss_series(with_reads(run, reads))
    assert series is not None
    assert series["t_s"].tolist() == [1.5, 2.5]
    assert series["miss_ratio"].tolist() == [0.5, 0.0]
    assert measures.miss_s(with_reads(run, reads)) == 0.5


def test_a_read_that_the_last_one_held_up_has_waited_since_it_was_due(run: Run) -> None:
    paced = {**run.parameters, "workloads": ["mixed", "compile"], "guest": "dm", "read_iops": 25}
    at_s = run.summary["move_s"]
    on_time = [(0.3 + 0.04 * i + 0.0001, 0.0001) for i in range(400) if 0.3 + 0.04 * i < at_s]
    first = 0.3 + 0.04 * len(on_time)  # it takes 2 s, and then the next 51 are there at once
    held_up = [(first + 2.0 + 0.001 * i, 0.0001 if i else 2.0) for i in range(52)]
    then = [(first + 0.04 * i + 0.0001, 0.0001) for i in range(52, 210)]
    moved = with_reads(run, [*on_time, *held_up, *then])
    moved = replace(moved, document={**moved.document, "parameters": paced})
    assert metrics.MEASURES["during_read_p99_s"](moved) == 0.0001, "one in 200 took long"
    waits_s = measures.since_due(moved, "read")
    assert waits_s is not None
    assert sorted(waits_s)[-3:] == pytest.approx([1.9201, 1.9601, 2.0], abs=1e-4)
    assert metrics.MEASURES["due_read_p99_s"](moved) == pytest.approx(1.9601, abs=1e-4)
    assert measures.percentile(waits_s, 50) == 0.0001, "who is on time has not waited"
    behind = [(0.3 + 0.1 * (i + 1), 0.1) for i in range(200)]  # 10 a second, of 25 that are due
    behind = replace(with_reads(run, behind), document=moved.document)
    assert 0.1 < metrics.MEASURES["due_read_p99_s"](behind) <= 0.2, "no queue that grows for ever"
    for other in ({"workloads": ["fio:a.fio"]}, {"workloads": ["mixed"], "guest": "qemu"}):
        document = {**moved.document, "parameters": {**paced, **other}}
        assert measures.since_due(replace(moved, document=document), "read") is None


def test_seconds_in_which_a_read_waited_are_seconds_of_misses(run: Run) -> None:
    at_s = measures.switch_done_s(run) + 0.01
    local = steady(0.0, 150, 0.0001)
    waiting = with_reads(run, [*local, (at_s + 0.1, 0.0001), (at_s + 10.2, 10.0)])
    assert measures.miss_s(waiting) == 10.0
    idle = with_reads(run, [*local, (at_s + 0.1, 0.0001), (at_s + 10.2, 0.05)])
    assert measures.miss_s(idle) == 1.0


def test_misses_cannot_be_told_without_a_round_trip_to_tell_them_by(run: Run) -> None:
    assert measures.misses(with_reads(run, steady(1, 60, 0.010))) is None


def test_recovered_is_when_no_hundred_reads_hold_two_slow_ones(run: Run) -> None:
    local = steady(1, 100, 0.001)
    slow = [*local, *steady(9, 10, 0.020), *steady(10, 200, 0.0019)]
    # The last but one of the slow reads begins the last bad hundred; what follows it is good.
    assert measures.recovered_s(with_reads(run, slow)) == pytest.approx(9.09 - run.switch_s)
    once = [*local, *steady(9, 120, 0.001), (11.0, 0.5), *steady(12, 120, 0.001)]
    assert measures.recovered_s(with_reads(run, once)) == pytest.approx(9.0 - run.switch_s)


def test_nobody_has_recovered_without_a_hundred_good_reads(run: Run) -> None:
    late = [*steady(1, 100, 0.001), *steady(9, 100, 0.020), *steady(20, 98, 0.001)]
    assert measures.recovered_s(with_reads(run, late)) is None


def test_until_when_reads_were_slow_is_known_without_a_hundred_good_ones(run: Run) -> None:
    at_s = measures.switch_done_s(run) + 0.01
    local = steady(0.0, 150, 0.0001)
    few = [(at_s + 0.1, 0.0001), (at_s + 1.0, 0.02), (at_s + 3.0, 0.02), (at_s + 3.1, 0.0001)]
    late = with_reads(run, [*local, *few])
    assert measures.recovered_s(late) is None
    assert measures.slow_until_s(late) == pytest.approx(at_s + 1.0 - run.switch_s)
    assert measures.slow_until_s(with_reads(run, [*local, *few[:2]])) == 0.0, "one is none"
    assert measures.slow_until_s(with_reads(run, few)) is None, "what is slow is not known"
    rows = [*local, *few, *steady(at_s + 4.0, 200, 0.0001)]
    recovered_s = measures.recovered_s(with_reads(run, rows))
    assert recovered_s == pytest.approx(at_s + 3.0 - run.switch_s), "the next read's end"


def test_an_io_that_began_before_independence_belongs_to_the_move(run: Run) -> None:
    done = measures.complete_s(run)
    assert done is not None
    reads = [(2.0, 0.1), (done + 0.5, 0.7), (done + 0.6, 0.2)]
    assert measures.during(with_reads(run, reads), "read").tolist() == [0.7]


def ahead(run: Run) -> Run:
    """The run, of a relocator that asks for an address at 0.6 s, connects by 1 s, copies from 2 to
    4 s, and is ready at 4.5 s."""
    at_s = [round(0.2 * i, 1) for i in range(61)]
    came = [74 * (t >= 0.6) + 10_000 * (t >= 1) + 10_000_000 * min(max(t - 2, 0), 2) for t in at_s]
    links = pd.DataFrame({"t_s": at_s, "link": "C", "rx_bytes": came, "tx_bytes": 0})
    wan = links.assign(link="wan")
    parameters = {**run.parameters, "settings": {"preseed": "rounds"}}
    return replace(
        run,
        document={**run.document, "parameters": parameters},
        links=pd.concat([links, wan], ignore_index=True),
        events=[{"event": "destination-started", "t_s": 4.5}, *run.events],
    )


def test_what_is_copied_ahead_is_part_of_the_move_of_whichever_system(run: Run) -> None:
    early = ahead(run)
    assert run.summary["move_s"] == measures.move_s(run) > 4.5
    assert measures.move_s(early) == 0.8, "a mirror's connections count, too"
    assert measures.phases(early)["source"] == (0.0, 0.8)
    assert measures.phases(early)["pre-copy"][0] == 0.8
    sooner_s = run.summary["move_s"] - 0.8
    from_move_s, at_once_s = (metrics.MEASURES["relocation_from_move_s"](r) for r in (early, run))
    assert from_move_s == pytest.approx(at_once_s + sooner_s)
    slow = with_reads(early, [*steady(0.0, 75, 0.0001), (3.0, 0.5), (3.1, 0.4)])
    assert measures.local_p99_s(slow) == 0.0001, "no local read waited for the copy"
    assert metrics.MEASURES["during_read_max_s"](slow) == 0.5
    assert metrics.MEASURES["during_reads"](slow) == 2
    assert measures.copy_bounds(early) == (0.8, 4.5)
    assert measures.link_use(early) == pytest.approx(20.01e6 / 3.7 / early.link_bytes_per_s)


def test_who_copied_nothing_ahead_began_to_move_when_told(run: Run) -> None:
    early = ahead(run)
    assert (
        measures.move_s(replace(early, links=early.links.assign(rx_bytes=0)))
        == (run.summary["move_s"])
    )


def test_a_unit_under_way_counts_by_its_share(run: Run) -> None:
    work = pd.DataFrame({"kind": "compile", "start_s": [0.0, 4.0], "end_s": [4.0, 6.0]})
    assert measures.progress(replace(run, work=work), "compile", 3.0, 6.0) == pytest.approx(1.25)


def test_the_longer_of_two_equal_runs_has_done_no_more(run: Run) -> None:
    """The stay's last unit stands nowhere, since it had not ended."""
    starts_s = [run.summary["move_s"] + i for i in range(5)]
    work = pd.DataFrame({"kind": "compile", "start_s": starts_s})
    work = work.assign(end_s=work["start_s"] + 0.8)
    end_s = starts_s[-1] + 0.4
    events = [{"event": "workloads-ended", "t_s": end_s}]
    stay = replace(run, work=work[work["end_s"] <= end_s], events=events)
    assert measures.lost_work_s(replace(run, work=work), stay) == {"compile": 0.0}


def test_what_is_wanted_is_what_was_read_or_partly_written_after_the_switch(run: Run) -> None:
    asked = [
        (1.0, "read", 0, 4096),  # before the switch
        (9.0, "read", 8192, 8192),
        (9.1, "write", 4096, 4096),  # whole: nothing to fetch
        (9.2, "read", 4096, 4096),
        (9.3, "write", 20480, 512),
    ]
    names = ["t_s", "kind", "offset_bytes", "length_bytes"]
    made = replace(run, requests=pd.DataFrame(asked, columns=names))
    assert measures.wanted(made) == [8192, 12288, 20480]


def test_ascending_is_one_for_a_sequence_and_minus_one_for_its_reverse() -> None:
    assert measures.ascending([1, 5, 9]) == pytest.approx(1)
    assert measures.ascending([9, 5, 1]) == pytest.approx(-1)
    assert measures.ascending([7]) is None


def test_the_cell_of_a_run_is_read_from_its_cell_json(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "x" / "y", Synthetic(system="remote", **SHORT))
    cell = {"id": "a/b/s3", "scenario": "a", "axes": {}, "system": "b", "seed": 3}
    (directory / "cell.json").write_text(json.dumps({"cell": cell}))
    (row,) = metrics.table(tmp_path)
    assert (row["cell"], row["name"], row["seed"]) == ("a/b/s3", "b", 3)
    (directory / "cell.json").write_text("{}")
    with pytest.raises(RunError, match=r"cell\.json: not a cell"):
        metrics.table(tmp_path)


def test_the_table_is_written_and_says_which_runs_are_not_ok(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs" / "e1" / "a" / "s1", Synthetic(outcome="refused", **SHORT))
    assert metrics.main([str(tmp_path / "runs"), str(tmp_path)]) == 0
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert list(row) == list(metrics.columns())
    assert (row["outcome"], row["downtime_s"]) == ("refused", "")
    assert "e1/a/s1: refused: checksums: 3 files differ" in capsys.readouterr().out


def test_a_directory_without_runs_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert metrics.main([str(tmp_path), str(tmp_path / "x.csv")]) == 1
    assert "there is no run" in capsys.readouterr().err
