"""The evaluation of a small synthetic matrix, and what is said of tables made by hand."""

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.analysis import metrics
from experiments.analysis.estimates import Estimate, estimate, paired_ratio
from experiments.publishing import evaluation
from experiments.publishing.figures import ALL, ablations, duels, evidence, paper, verdicts
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


def test_a_failed_run_is_named_and_in_the_table(out: Path) -> None:
    page = (out / "index.html").read_text()
    assert f"Not shown: {FAILED} failed: checksums: 3 files differ" in page
    rows = page.partition('id="runs"')[2].count("<tr") - 1
    assert rows == len(evidence.read_metrics(out / "metrics.csv"))


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


def compared(**peer: float) -> pd.DataFrame:
    """relocator, 1 everywhere, and a mirror with these figures."""
    base: dict[str, Any] = {measure.column: 1.0 for measure in duels.MEASURES}
    base |= {"handover_s": 0.03, "background_delay_s": 0.0}
    rows = [{**base, "name": "relocator"}, {**base, **peer, "name": "mirror"}]
    return pd.DataFrame(rows).assign(axis_rtt="20ms", axis_rate="100mbit", seed=1)


def test_a_verdict_says_where_each_is_ahead() -> None:
    (said,) = verdicts.verdicts(compared(downtime_s=3.0, during_read_p99_s=0.5, lost_work_s=4.0))
    assert "Against mirror: ours is down for less time (3 times)" in said
    assert "mirror reads faster meanwhile (2 times)" in said
    assert "mirror loses 3 s more of work" in said


def test_a_verdict_says_what_the_runs_show_to_be_the_reason() -> None:
    (said,) = verdicts.verdicts(compared(downtime_s=0.5, handover_s=0.001, independent_s=math.nan))
    assert "of relocator's downtime 30 ms on average are the handover of the disk" in said
    assert "there nothing is" not in said
    (said,) = verdicts.verdicts(compared(downtime_s=0.5, handover_s=2e-6))
    assert "the handover of the disk, which is sealed at the source; there nothing is" in said
    slow = compared(during_read_p99_s=0.0005)
    slow.loc[0, "during_read_p99_s"] = 0.024
    (said,) = verdicts.verdicts(slow)
    assert "costs a round trip, our read p99 is 1.2" in said
    (said,) = verdicts.verdicts(compared(independent_s=0.3).assign(background_delay_s=8.0))
    assert "was told to start 8 s after the switch" in said


def test_what_differs_by_less_than_a_tenth_is_no_victory() -> None:
    assert verdicts.verdicts(compared(downtime_s=1.05, independent_s=0.95)) == []


def test_never_is_worse_than_any_time() -> None:
    (said,) = verdicts.verdicts(compared(recovered_s=math.nan))
    assert "ours is at local speed sooner (there: not seen)" in said
    nobody = compared().assign(recovered_s=math.nan)
    assert verdicts.verdicts(nobody) == []


def test_the_table_says_how_many_times_better_and_who_is_ahead() -> None:
    peer = compared(downtime_s=3.0, during_read_p99_s=0.5, during_write_p99_s=1.04)
    scores = duels.scores(peer.assign(recovered_s=[1.0, math.nan]))["mirror"]
    found = dict(zip((m.column for m in duels.SCORED), scores, strict=True))
    assert found["downtime_s"] == duels.Score("3 ×", "ok")
    assert found["during_read_p99_s"] == duels.Score("0.5 ×", "bad")
    assert found["during_write_p99_s"] == duels.Score("1 ×", "")
    assert found["recovered_s"] == duels.Score("there: not seen", "ok")


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


def test_the_first_table_has_the_best_of_both_sides() -> None:
    frame = compared(downtime_s=3.0, during_read_p99_s=0.5, recovered_s=math.nan)
    base = {**frame.iloc[0].to_dict(), "name": "hybrid", "during_read_p99_s": 0.51}
    worse = {**frame.iloc[1].to_dict(), "name": "offline", "downtime_s": 9.0}
    (row,) = duels.front(pd.concat([frame, pd.DataFrame([base, worse])])).values()
    found = dict(zip((m.column for m in duels.SCORED), row, strict=True))
    assert found["downtime_s"] in (
        duels.Score("3 ×: mirror to relocator", "ok"),
        duels.Score("3 ×: mirror to hybrid", "ok"),
    )
    assert found["during_read_p99_s"] == duels.Score("0.98 ×: mirror to hybrid", "")
    assert found["recovered_s"] == duels.Score("nobody else: not seen", "ok")


def test_each_peer_meets_the_better_of_ours() -> None:
    frame = compared(downtime_s=0.5, independent_s=0.2)
    base = frame.iloc[0].to_dict()
    hybrid = {**base, "name": "hybrid", "independent_s": 0.1, "during_write_p99_s": 3.0}
    seeded = {**base, "name": "seeded", "downtime_s": 0.1}
    frame = pd.concat([frame, pd.DataFrame([hybrid, seeded])])
    (scores,) = duels.scores(frame).values()
    found = dict(zip((m.column for m in duels.SCORED), scores, strict=True))
    assert found["independent_s"] == duels.Score("2 ×", "ok")
    assert found["during_write_p99_s"] == duels.Score("1 ×", "")
    assert found["downtime_s"] == duels.Score("0.5 ×", "bad"), "seeded is neither"
    *_, last = verdicts.verdicts(frame.assign(wan_over_allocated=[1.0, 1.0, 1.0, 0.2]))
    assert "0.2 times the bytes over the WAN, 1 times the time" in last
    said = duels.tally(duels.front(frame))
    assert said == (
        "Of 6 cells ours is ahead in 1, no further than 10 % apart in 4, "
        "another in 1: downtime (1 of 1 conditions); each peer's sentence says why."
    )
    assert "nobody is ahead" in duels.tally(duels.front(compared(downtime_s=3.0)))


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
