"""The evaluation of a small synthetic matrix, and what is said of tables made by hand."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest

from experiments.analysis import metrics
from experiments.analysis.estimates import Estimate, estimate, paired_ratio
from experiments.publishing import evaluation
from experiments.publishing.figures import ALL, ablations, draw, evidence, paper
from experiments.publishing.figures.evidence import Evidence
from experiments.scenarios import cells
from experiments.scenarios.cells import Cell
from tests.support import synthetic_matrix
from tests.support.synthetic_run import Synthetic, write_run

FAILED = "compare/rtt=20ms,rate=100mbit/nbdkit-cow/s1"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed of everything, evaluated; a cell of the matrix has not been run."""
    root: Path = tmp_path_factory.mktemp("evaluation")
    synthetic_matrix.write(root / "runs")
    metrics.write(root / "metrics.csv", metrics.table(root / "runs"))
    lacking = Cell("e7/offline/s1", "e7", {}, "offline", 1, "virtual", 60, ())
    lossy = Cell(FAILED, "compare", {}, "nbdkit-cow", 1, "virtual", 60, (), may_fail="it loses")
    cells.write(root / "matrix.json", [lacking, lossy])
    assert evaluation.main([str(root)]) == 0
    return root


def test_every_figure_is_drawn_and_has_a_table(out: Path) -> None:
    assert {path.stem for path in (out / "figures").iterdir()} == set(ALL)
    for name in ALL:
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "tables" / f"{name}.csv").is_file()
        assert (out / "tables" / f"{name}.md").read_text().startswith("| ")


def test_the_page_needs_no_other_file(out: Path) -> None:
    page = (out / "index.html").read_text()
    links = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert "url(" not in page and str(out) not in page
    anchors = {link[1:] for link in links if link.startswith("#")}
    assert anchors <= set(re.findall(r'id="([^"]*)"', page))


def test_the_summary_links_to_what_was_written(out: Path) -> None:
    said = (out / "summary.md").read_text()
    links = re.findall(r"\]\(([^)]*)\)", said)
    assert {Path(link).stem for link in links} == set(ALL)
    assert all((out / link).is_file() for link in links)
    assert "<" not in said and "&" not in said


def test_the_summary_names_what_the_page_names(out: Path) -> None:
    said = (out / "summary.md").read_text()
    assert f"Not shown: {FAILED} failed: checksums: 3 files differ" in said
    assert "Not run yet: e7/offline/s1." in said
    assert "- Against offline: ours " in said
    rows = len(evidence.read_metrics(out / "metrics.csv"))
    assert f"{rows} cells; 1 failed (named below" in said, "cells that share a run are no two runs"


def test_a_failed_run_is_named_and_in_the_table(out: Path) -> None:
    page = (out / "index.html").read_text()
    assert f"Not shown: {FAILED} failed: checksums: 3 files differ" in page
    rows = page.partition('id="runs"')[2].count("<tr") - 1
    assert rows == len(evidence.read_metrics(out / "metrics.csv"))


def test_a_failed_run_of_a_scenario_without_a_figure_is_named_at_the_top(out: Path) -> None:
    found = Evidence(out)
    row = found.frame[found.frame["cell"] == FAILED].assign(scenario="own", cell="own/mine/s1")
    found.frame = pd.concat([found.frame, row], ignore_index=True)
    said = evaluation.summary(found, {name: evidence.Drawn(name) for name in ALL})
    assert "Not shown: own/mine/s1 failed: checksums: 3 files differ" in said


@pytest.mark.parametrize(("least", "begins"), [(0.0, -0.1), (-0.5, -1.25)])
def test_an_axis_begins_at_zero_if_nothing_is_below(least: float, begins: float) -> None:
    with draw.style():
        panels = draw.figure(3, 2).subplots(2, 1, sharex="col")
        for axes, value in zip(panels, (least, 0.0), strict=True):
            draw.bar(axes, 0, estimate([value]), "#444")
        draw.wide_x(panels[1])
    assert panels[1].get_xlim()[0] == pytest.approx(begins)


def test_runs_that_failed_alike_are_named_in_one_sentence(out: Path, tmp_path: Path) -> None:
    found = Evidence(out)
    row = found.frame[found.frame["cell"] == FAILED]
    more = [row.assign(cell=f"{FAILED}-{which}") for which in ("again", "more", "other")]
    more[-1] = more[-1].assign(reason="no answer\nat all")
    found.frame = pd.concat([found.frame, *more], ignore_index=True)
    said = [note for note in found.notes("compare") if note.startswith("Not shown")]
    assert said == [
        f"Not shown: {FAILED} failed: checksums: 3 files differ. A finding: it loses.",
        f"Not shown: {FAILED}-again, {FAILED}-more failed: checksums: 3 files differ",
        f"Not shown: {FAILED}-other failed: no answer",
    ]


def test_what_only_some_seeds_saw_is_said(out: Path) -> None:
    found = Evidence(out)
    again = found.frame.assign(seed=2)
    again.loc[again["scenario"] == "outage", "recovered_s"] = math.nan
    found.frame = pd.concat([found.frame, again], ignore_index=True)
    assert not [note for note in found.notes("e7") if "seeds while" in note]
    assert (
        "Not every time: relocator at event=cut-2s: reads were not as local with 1 of 2 seeds "
        "while it was watched; a mean is of the others."
    ) in found.notes("outage")


def test_a_run_that_was_not_made_is_named(out: Path) -> None:
    assert "Not run yet: e7/offline/s1." in Evidence(out).notes("e7")


def test_one_seed_is_said_to_be_one(out: Path) -> None:
    said = "Clock: virtual. One seed: points without an interval."
    assert Evidence(out).caption("pacing") == said
    assert Evidence(out).caption("compare") == f"{said} Lacks 1 run."
    assert Evidence(out).caption("clocks").startswith("Clock: real and virtual.")


def test_the_same_runs_give_the_same_picture(out: Path) -> None:
    first, second = (paper.e7(Evidence(out)) for _ in range(2))
    assert first.png == second.png == (out / "figures" / "e7.png").read_bytes()


def test_sentences_follow_the_data(out: Path) -> None:
    said = " ".join(paper.e7(Evidence(out)).sentences)
    assert "75 times sooner" in said
    orders = " ".join(ablations.ordering(Evidence(out)).sentences)
    assert "The best order that doesn't know the future is in-use+hot" in orders


def test_what_was_not_run_is_said_to_be_lacking(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "e1" / "a" / "s1", Synthetic(outcome="failed"))
    metrics.write(tmp_path / "metrics.csv", metrics.table(tmp_path / "runs"))
    drawn = evaluation.evaluate(tmp_path)
    assert all(one.png is None for one in drawn.values())
    page = (tmp_path / "index.html").read_text()
    assert "no run of it went well" in page and "it has not been run" in page
    assert "nothing can be said" in page
    said = (tmp_path / "summary.md").read_text()
    assert "nothing can be said" in said and "it has not been run" in said and "](" not in said


def test_without_metrics_there_is_no_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluation.main([str(tmp_path)]) == 1
    assert "metrics.csv" in capsys.readouterr().err


def test_an_interval_is_students(tmp_path: Path) -> None:
    found = estimate([1.0, 2.0, 3.0, math.nan])
    assert found is not None
    assert (found.mean, found.count) == (2.0, 3)
    assert found.high - found.mean == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert estimate([5.0]) == Estimate(5.0, 5.0, 5.0, 1)
    assert estimate([math.nan]) is None


def test_ratios_are_taken_seed_by_seed() -> None:
    ours = pd.Series([1.0, 10.0, 2.0, math.nan], index=[1, 2, 3, 4])
    theirs = pd.Series([2.0, 20.0, 4.0, 7.0], index=[1, 2, 3, 4])
    found = paired_ratio(theirs, ours)
    assert found is not None
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((2, 2, 2, 3))
    assert paired_ratio(theirs, ours[3:]) is None
    other = paired_ratio(pd.Series([1.0, 4.0]), pd.Series([1.0, 1.0]))
    assert other is not None
    assert other.mean == pytest.approx(2)
    assert other.low * other.high == pytest.approx(4), "as far below as above, as a factor"


def test_a_cut_lasts_until_the_link_is_back(out: Path) -> None:
    found = Evidence(out)
    rows = found.scenario("outage").set_index("axis_event")
    ((start_s, end_s),) = ablations.cuts(found.run(rows.loc["cut-2s"]))
    assert (start_s, end_s) == (4.0, 6.0)
    assert ablations.cuts(found.run(rows.loc["none"])) == []


def test_labels_of_axes_have_an_order() -> None:
    assert evidence.seconds("100ms") == pytest.approx(0.1)
    assert [evidence.size_bytes(text) for text in ("64K", "1M", "auto")] == [65536, 2**20, math.inf]
    assert evidence.fraction("1%") == pytest.approx(0.01)
