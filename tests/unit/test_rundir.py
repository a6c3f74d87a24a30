"""What is believed of a run directory, and what is said about one that is not."""

import json
from pathlib import Path

import pytest

from experiments.running.rundir import RunError, load_run
from tests.support.synthetic_run import Synthetic, write_run


def test_a_finished_run_is_read_whole(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", Synthetic()))
    assert run.relocates
    assert run.switch_s == 26.0
    assert run.end_s == 70.0
    assert run.time_of("background-started") == pytest.approx(36.045)
    assert run.time_of("no-such-event") is None
    assert set(run.links["link"]) == {"A", "B", "C", "memory", "wan"}


@pytest.mark.parametrize(
    ("system", "moves", "relocates"),
    [("mirror", True, True), ("remote", True, False), ("stay", False, False)],
)
def test_whether_vm_and_disk_move_is_the_systems(
    tmp_path: Path, system: str, moves: bool, relocates: bool
) -> None:
    run = load_run(write_run(tmp_path / "run", Synthetic(system=system)))
    assert (run.moves, run.relocates) == (moves, relocates)


def test_the_disk_of_a_mirror_is_free_of_the_source_whatever_background_says(
    tmp_path: Path,
) -> None:
    made = Synthetic(system="mirror", background=False)
    run = load_run(write_run(tmp_path / "run", made))
    assert run.independent_s == pytest.approx(0.055)
    assert run.end_s == 70.0


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere: there is no such run directory"):
        load_run(tmp_path / "nowhere")


def test_a_run_that_did_not_finish_writing_is_refused(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", Synthetic())
    (directory / "run.json").unlink()
    with pytest.raises(RunError, match=r"no run\.json: the run did not finish writing"):
        load_run(directory)


def test_a_failed_run_tells_its_reason(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", Synthetic(outcome="failed"))
    with pytest.raises(RunError, match="ended as 'failed': checksums: 3 files differ"):
        load_run(directory)


def test_a_failed_run_without_summary_still_tells_its_reason(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", Synthetic(outcome="refused"))
    document = json.loads((directory / "run.json").read_text())
    document |= {"summary": None, "reason": "the link's round trip is 3 % off"}
    (directory / "run.json").write_text(json.dumps(document))
    with pytest.raises(RunError, match="'refused': the link's round trip is 3 % off"):
        load_run(directory)


def test_another_format_is_refused(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", Synthetic())
    (directory / "run.json").write_text('{"format": 7}')
    with pytest.raises(RunError, match="format 7; this program reads format 2"):
        load_run(directory)


@pytest.mark.parametrize("content", ["", "not json", "[]"])
def test_a_damaged_document_is_refused(tmp_path: Path, content: str) -> None:
    directory = write_run(tmp_path / "run", Synthetic())
    (directory / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json"):
        load_run(directory)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", Synthetic())
    (directory / "links.csv").write_text("t_s,link,rx_bytes\n")
    with pytest.raises(RunError, match=r"links\.csv: these columns are missing: tx_bytes"):
        load_run(directory)


def test_a_missing_or_empty_table_is_named(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", Synthetic())
    (directory / "work.csv").write_text("")
    with pytest.raises(RunError, match=r"work\.csv: not a table"):
        load_run(directory)
    (directory / "work.csv").unlink()
    with pytest.raises(RunError, match=r"work\.csv: missing"):
        load_run(directory)


def test_a_damaged_event_is_named_by_its_line(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", Synthetic())
    with (directory / "events.jsonl").open("a") as events:
        events.write("{half\n")
    with pytest.raises(RunError, match=r"events\.jsonl:\d+: not an event"):
        load_run(directory)
