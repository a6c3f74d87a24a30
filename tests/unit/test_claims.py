"""A claim is looked up in tables of metrics, and borne out or not."""

import math
from pathlib import Path

import pandas as pd
import pytest

from experiments.claims import __main__ as command
from experiments.claims import claim
from experiments.scenarios import cells
from experiments.scenarios.schema import ScenarioError

QUOTIENT = 'says = "sooner"\nfigure = ["copy_s", "e2/a/s1", "e2/b/s1"]\nholds = ">= 2"\n'


def loaded(tmp_path: Path, text: str) -> claim.Claim:
    path = tmp_path / "claims.toml"
    path.write_text(f"[[claims]]\n{text}")
    (found,) = claim.load(path)
    return found


def table(**copies_s: float) -> pd.DataFrame:
    rows = [(f"e2/{name}/s1", "ok", copy_s) for name, copy_s in copies_s.items()]
    return pd.DataFrame(rows, columns=["cell", "outcome", "copy_s"])


def test_a_quotient_holds_from_its_bound_on(tmp_path: Path) -> None:
    one = loaded(tmp_path, QUOTIENT)
    assert one.holds(one.figure(table(a=6.0, b=3.0)))
    assert not one.holds(one.figure(table(a=5.9, b=3.0)))


def test_a_figure_of_one_run_may_have_a_largest_value(tmp_path: Path) -> None:
    one = loaded(tmp_path, 'says = "soon"\nfigure = ["copy_s", "e2/a/s1"]\nholds = "<= 4.5"\n')
    assert one.holds(one.figure(table(a=4.5)))
    assert not one.holds(one.figure(table(a=4.6)))


def test_a_figure_may_have_to_lie_between_two(tmp_path: Path) -> None:
    text = 'says = "a trip"\nfigure = ["copy_s", "e2/a/s1"]\nholds = "2 to 2.5"\nunit = "s"\n'
    one = loaded(tmp_path, text)
    assert [one.holds(value) for value in (1.9, 2.0, 2.5, 2.6)] == [False, True, True, False]
    assert one.expected == "2 to 2.5 s"


def test_a_quotient_of_nothing_bears_nothing_out(tmp_path: Path) -> None:
    one = loaded(tmp_path, QUOTIENT)
    assert not one.holds(one.figure(table(a=-6.0, b=-3.0))), "both did better than if they stayed"
    assert math.isnan(one.figure(table(a=0.0, b=0.0)))
    assert one.holds(one.figure(table(a=6.0, b=0.0))), "some against nothing"
    assert one.holds(one.figure(table(a=6.0, b=-1.0)))


def test_a_run_that_is_missing_or_failed_bears_nothing_out(tmp_path: Path) -> None:
    one = loaded(tmp_path, QUOTIENT)
    failed = table(a=6.0, b=3.0)
    failed.loc[1, "outcome"] = "failed"
    for metrics in (table(a=6.0), failed):
        assert math.isnan(one.figure(metrics))
        assert not one.holds(one.figure(metrics))


def test_the_table_says_which_claims_do_not_hold(tmp_path: Path) -> None:
    one = loaded(tmp_path, QUOTIENT + 'paper = "over 3"\n')
    for name, metrics in (("was", table(a=6.0, b=2.0)), ("now", table(a=5.0, b=4.0))):
        (tmp_path / name).mkdir()
        metrics.to_csv(tmp_path / name / "metrics.csv")
    (row,) = command.rows([one], tmp_path / "was", tmp_path / "now")
    assert row == ["sooner", "over 3", "3 ×", "1.25 ×", "at least 2 ×", "DOES NOT HOLD"]
    assert "| 1.25 × | at least 2 × | DOES NOT HOLD |" in command.markdown([row])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('figure = ["copy", "e2/a/s1"]\nholds = ">= 2"', "did you mean 'copy_s'"),
        ('figure = "copy_s"\nholds = ">= 2"', "[METRIC, CELL]"),
        ('figure = ["copy_s", "e2/a/s1"]\nholds = "2"', "'<= N', '>= N' or 'N to N'"),
        ('figure = ["copy_s", "e2/a/s1"]\nholds = ">= 2"\nseed = 1', "known: beside"),
    ],
)
def test_a_wrong_claim_is_refused_with_what_would_be_right(
    tmp_path: Path, wrong: str, said: str
) -> None:
    with pytest.raises(ScenarioError, match=r"claim 1: ") as refused:
        loaded(tmp_path, f'says = "it"\n{wrong}\n')
    assert said in str(refused.value)


def test_what_is_claimed_is_of_cells_that_there_are_and_was_published() -> None:
    known = cells.quick_or_full(quick=True)
    found = claim.load()
    wanted = claim.cells_of(found, known)
    assert {cell for one in found for cell in one.cells} <= {cell.id for cell in wanted}
    assert all(need in {cell.id for cell in wanted} for cell in wanted for need in cell.needs)
    published = pd.read_csv(command.PUBLISHED / "metrics.csv")
    assert [one.says for one in found if not one.holds(one.figure(published))] == []


def test_a_cell_that_there_is_not_is_refused_by_name() -> None:
    one = claim.Claim("it", "copy_s", "e2/relocatr/s1", None, high=1.0)
    with pytest.raises(ScenarioError, match="did you mean 'e2/relocator/s1'"):
        claim.cells_of([one], cells.quick_or_full(quick=True))
