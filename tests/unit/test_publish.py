"""What may be published, and what is said of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.publishing import publish
from experiments.running import archive
from experiments.scenarios import cells
from experiments.scenarios.cells import Cell

A = Cell("some/a/s1", "some", {}, "a", 1, "virtual", 60, ("--seed", "1"))
B = replace(A, id="some/b/s1", system="b")
METRICS = f"cell,outcome\n{A.id},ok\n{B.id},ok\n"
MACHINE = {"kernel": "6.1", "lab_image": "abc", "processors": 2, "python": "3.11"}


def evaluation(out: Path, *, versions: tuple[str, str] = ("v", "v")) -> Path:
    """An evaluation of two runs."""
    for cell, version in zip((A, B), versions, strict=True):
        place = out / "runs" / cell.id
        place.mkdir(parents=True)
        (place / "run.json").write_text(json.dumps({"outcome": "ok"}))
        document = {"code": {"describe": "d", "run": version}, "machine": MACHINE}
        (place / "cell.json").write_text(json.dumps(document))
    cells.write(out / "matrix.json", [A, B])
    (out / "metrics.csv").write_text(METRICS)
    (out / "summary.md").write_text("## What it shows\n\n![E1](figures/e1.png)\n")
    for name in ("tables", "figures"):
        (out / name).mkdir()
    (out / "figures" / "e1.png").write_bytes(b"png")
    return out


def test_metrics_tables_and_figures_are_published_with_what_they_are_of(tmp_path: Path) -> None:
    out = evaluation(tmp_path / "reproduce-quick")
    assert publish.main([str(out), str(tmp_path / "results/quick")]) == 0
    text = (tmp_path / "results/quick/README.md").read_text()
    assert "Of `make reproduce QUICK=1 SEEDS=1`: 2 runs of 2 cells, 2 on the virtual clock" in text
    assert text.endswith("## What it shows\n\n![E1](figures/e1.png)\n")
    assert (tmp_path / "results/quick/metrics.csv").read_text() == METRICS
    assert not (tmp_path / "results/quick/runs").exists()
    again = tmp_path / "again"
    assert archive.unpack(tmp_path / "results/quick/runs.tar.xz", again) == [A.id, B.id]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda out: (out / "runs" / B.id / "run.json").unlink(),
            "some/b/s1: the run can't be read",
        ),
        (
            lambda out: (out / "runs" / B.id / "cell.json").unlink(),
            "some/b/s1: the run can't be read",
        ),
        (lambda out: (out / "metrics.csv").unlink(), "has no metrics.csv"),
    ],
)
def test_what_is_not_whole_is_not_published(
    tmp_path: Path, damage: object, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = evaluation(tmp_path / "reproduce")
    damage(out)  # type: ignore[operator]
    assert publish.main([str(out), str(tmp_path / "full")]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "full").exists()


def test_runs_of_two_versions_are_not_published(tmp_path: Path) -> None:
    out = evaluation(tmp_path / "reproduce", versions=("v", "w"))
    with pytest.raises(publish.PublishError, match="2 versions"):
        publish.publish(out, tmp_path / "full")


@pytest.mark.parametrize("table", [f"cell,outcome\n{A.id},ok\n", METRICS.replace(",ok", ",failed")])
def test_metrics_of_other_runs_are_not_published(tmp_path: Path, table: str) -> None:
    out = evaluation(tmp_path / "reproduce")
    (out / "metrics.csv").write_text(table)
    with pytest.raises(publish.PublishError, match="is not of these runs"):
        publish.publish(out, tmp_path / "full")


def test_every_machine_and_image_is_named(tmp_path: Path) -> None:
    out = evaluation(tmp_path / "reproduce")
    path = out / "runs" / B.id / "cell.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "machine": {**MACHINE, "lab_image": "xyz"}}))
    publish.publish(out, tmp_path / "full")
    assert "| lab image | `abc and xyz` |" in (tmp_path / "full/README.md").read_text()


def test_the_command_says_how_many_seeds_where_they_are_not_the_usual_ones() -> None:
    for quick, usual in ((True, "make reproduce QUICK=1"), (False, "make reproduce")):
        assert publish._command(cells.quick_or_full(quick), quick) == usual
        for seeds in (2, 5):
            given = publish._command(cells.quick_or_full(quick, seeds), quick)
            assert given == f"{usual} SEEDS={seeds}"
