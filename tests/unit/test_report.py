"""The result directory: complete, self-contained, and the same bytes for the same runs."""

import csv
import json
import re
from pathlib import Path

import pytest

from experiments.analysis import compare
from experiments.analysis.series import Runs
from experiments.publishing import report
from experiments.running.rundir import load_run
from tests.support.synthetic_run import Synthetic, write_run


def load(root: Path) -> Runs:
    made = {
        "remote": Synthetic(system="remote", background=False),
        "on-demand": Synthetic(background=False),
        "background": Synthetic(),
    }
    return {name: load_run(write_run(root / name, run)) for name, run in made.items()}


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The results of two equal demos."""
    directories = []
    for _ in range(2):
        directory: Path = tmp_path_factory.mktemp("demo")
        report.write_results(directory, load(directory / "runs"), "make demo")
        directories.append(directory)
    return directories[0], directories[1]


def test_equal_runs_give_equal_bytes(
    twice: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([str(path) for path in twice]) == 0
    assert "identical" in capsys.readouterr().out


def test_the_page_needs_no_other_file(twice: tuple[Path, Path]) -> None:
    page = (twice[0] / "index.html").read_text()
    sources = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page


def test_no_path_finds_its_way_into_the_results(twice: tuple[Path, Path]) -> None:
    for path in twice[0].rglob("*"):
        if path.is_file():
            assert str(twice[0]).encode() not in path.read_bytes(), path.name


def test_pictures_carry_no_program_name_or_date(twice: tuple[Path, Path]) -> None:
    pictures = sorted(path.name for path in twice[0].glob("*.png"))
    assert pictures == [
        "e2-background.png",
        "e2-compared.png",
        "e2-on-demand.png",
        "e2-remote.png",
        "links.png",
    ]
    for name in pictures:
        content = (twice[0] / name).read_bytes()
        assert b"tEXt" not in content and b"tIME" not in content


def test_the_tables_hold_the_same_rows(twice: tuple[Path, Path]) -> None:
    with (twice[0] / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    document = json.loads((twice[0] / "results.json").read_text())
    markdown = (twice[0] / "table.md").read_text().splitlines()
    assert [row["measure"] for row in rows] == [row["label"] for row in document["table"]]
    assert len(markdown) == len(rows) + 2
    never = next(row for row in rows if row["measure"].startswith("Switch until"))
    assert (never["remote"], never["unit"]) == ("", "s")
    assert "**" in markdown[4]


def test_a_report_of_one_run_alone_can_be_made(tmp_path: Path) -> None:
    for name, made in (("remote", Synthetic(system="remote")), ("background", Synthetic())):
        directory = tmp_path / name
        runs = {name: load_run(write_run(directory / "runs" / name, made))}
        report.write_results(directory, runs, "make demo")
        assert (directory / "index.html").is_file()
