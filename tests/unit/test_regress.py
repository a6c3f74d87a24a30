"""The regression check, without the lab: from measurements to a verdict, and to a commit."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import pytest
from rich.console import Console

from experiments.regress import baseline, bisect, judge, measure, noise, plot, report, tree
from experiments.regress.baseline import Baseline
from experiments.regress.figures import FIGURES, values
from experiments.regress.slowdowns import SLOWDOWNS
from experiments.regress.tree import RegressError
from experiments.running.code import digest
from tests.support.synthetic_gauge import measured

PROJECT = Path(__file__).parents[2]


def verdicts(noises: dict[str, float] | None = None, **changed: float) -> list[judge.Verdict]:
    return judge.judge(values(measured()), values(measured(**changed)), noises or {})


def word(found: list[judge.Verdict], name: str) -> str:
    (one,) = (one.word for one in found if one.figure.name == name)
    return one


def test_figures_are_what_was_measured_in_their_units() -> None:
    found = values(measured())
    assert found["instructions: a miss"] == 300_000
    assert found["round trips: a miss"] == pytest.approx(1)
    assert found["20 ms: requests to the source a MiB"] == 50
    assert found["20 ms: bytes over the WAN a byte of the disk"] == 1.0625
    assert set(found) == {one.name for one in FIGURES}


def test_latencies_are_of_reads_that_waited_and_without_a_clients_first() -> None:
    found = values(measured())
    assert found["20 ms: read that waits, p50"] == pytest.approx(0.02 + 50e-4)
    assert found["20 ms: read that waits, p99"] == pytest.approx(0.02 + 100e-4)
    assert found["20 ms: write, p50"] == pytest.approx(50e-5)


def test_the_same_code_raises_no_alarm() -> None:
    assert not any(one.word for one in verdicts())
    assert report.headline(verdicts()) == f"no regression in {len(FIGURES)} figures"


def test_more_than_two_per_cent_is_worse_and_less_is_told() -> None:
    assert word(verdicts(miss_ns=306_100), "instructions: a miss") == "worse"
    assert word(verdicts(miss_ns=305_900), "instructions: a miss") == "more"
    assert word(verdicts(miss_ns=301_000), "instructions: a miss") == ""
    assert word(verdicts(miss_ns=290_000), "instructions: a miss") == "less"


def test_what_noise_may_do_is_no_alarm() -> None:
    noises = {"20 ms: copy": 0.02}
    assert word(verdicts(noises, copy_s=3.17), "20 ms: copy") == ""
    assert word(verdicts(noises, copy_s=3.17), "100 ms: copy") == "worse"
    assert word(verdicts(noises, copy_s=3.19), "20 ms: copy") == "worse"


def test_a_round_trip_more_is_named_first() -> None:
    found = verdicts(miss_trips=2.0, copy_s=3.1)
    assert report.headline(found).startswith("worse: round trips: a miss +1.000 RTT and 2 others")
    assert "hydration.py" in report.hints(found)[0]


def test_the_summary_shows_what_moved_and_folds_the_rest() -> None:
    text = report.summary(verdicts(copy_s=3.3), "abc")
    shown, _, folded = text.partition("<details>")
    assert "| 20 ms: copy | 3.000 s | 3.300 s | +10.00% | 2.0% | worse |" in shown
    assert "round trips: a miss |" not in shown
    assert "round trips: a miss |" in folded


def test_the_picture_has_a_row_a_figure_and_red_only_if_something_is_worse() -> None:
    def reds(png: bytes) -> int:
        pixels = matplotlib.image.imread(io.BytesIO(png))
        return int(((pixels[..., 0] > 0.7) & (pixels[..., 1] < 0.4)).sum())

    assert reds(plot.figure(verdicts(), "abc")) == 0
    assert reds(plot.figure(verdicts(copy_s=4.0), "abc")) > 100


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = Baseline("0123", {"qemu": "7.2"}, values(measured()))
    baseline.save(written, tmp_path)
    assert baseline.load(tmp_path) == written


def test_without_a_baseline_the_message_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(RegressError, match="there is none; `regress accept` makes it"):
        baseline.load(tmp_path)


def test_the_committed_figures_are_those_that_there_are() -> None:
    names = {one.name for one in FIGURES}
    assert set(baseline.load().figures) == names
    assert set(baseline.noise()) <= names


@pytest.mark.parametrize("slowdown", SLOWDOWNS, ids=lambda one: one.name)
def test_a_slowdown_fits_the_product_as_it_is(slowdown: object) -> None:
    with tree.with_product(noise.PRODUCT) as plain, noise.changed(slowdown.apply) as slow:
        assert digest(plain) != digest(slow)
        changed = [
            path.relative_to(slow)
            for path in slow.rglob("*.py")
            if path.read_bytes() != (plain / path.relative_to(slow)).read_bytes()
        ]
    assert len(changed) == 1
    assert slowdown.figure in {one.name for one in FIGURES if one.part in slowdown.parts}


@pytest.mark.parametrize("name", noise.CHANGES)
def test_an_irrelevant_change_is_one_and_still_python(name: str) -> None:
    with tree.with_product(noise.PRODUCT) as plain, noise.changed(noise.CHANGES[name]) as other:
        assert digest(plain) != digest(other)
        for path in other.rglob("*.py"):
            compile(path.read_text(), str(path), "exec")


def test_equal_trees_have_equal_keys_whatever_was_compiled_in_them(tmp_path: Path) -> None:
    with tree.with_product(noise.PRODUCT) as one, tree.with_product(noise.PRODUCT) as other:
        (other / "relocator" / "__pycache__").mkdir()
        (other / "relocator" / "__pycache__" / "x.pyc").write_bytes(b"x")
        assert measure.key(one) == measure.key(other)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[tuple[list[str], Path]]:
    """Commits that touch the product's code, the oldest first, and where they seem to have been
    measured: from the fourth on a miss costs more."""
    code_only = ":(glob)relocator/**/*.py"
    log = tree.git("log", "--format=%H", "-6", "--", code_only).decode().split()
    if len(log) < 6:
        pytest.fail("the checkout has no history: fetch it all (fetch-depth: 0)")
    commits = log[::-1]
    for number, commit in enumerate(commits):
        with tree.of_commit(commit) as code:
            place = tmp_path / "measured" / measure.key(code)
        found = measured(miss_ns=300_000 if number < 3 else 315_000)
        for boot in measure.BOOTS:
            (place / "+".join(boot)).mkdir(parents=True, exist_ok=True)
            for part in boot:
                (place / "+".join(boot) / f"{part}.json").write_text(json.dumps(found[part]))
    yield commits, tmp_path
    assert not (tmp_path / "bisect").exists()


def test_a_bisection_finds_the_commit(history: tuple[list[str], Path]) -> None:
    commits, out = history
    command = [sys.executable, "-m", "experiments.regress", "--out", str(out)]
    command += ["bisect", commits[0], commits[-1]]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "worse: instructions: a miss +5.00%" in done.stdout
    assert commits[3] in done.stdout.splitlines()[-20:][0] or commits[3][:12] in done.stdout
    assert f"{commits[3]} is the first bad commit" in done.stdout


def test_a_bisection_of_what_is_no_worse_says_so(history: tuple[list[str], Path]) -> None:
    commits, out = history
    how = {"out": out, "again": False, "at_once": 1}
    with pytest.raises(RegressError, match="is not worse than"):
        bisect.run(commits[0], commits[2], None, Console(quiet=True), **how)


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["bisect", "HEAD", "nonsense"], "nonsense", 1),
        (["bisect", "HEAD", "HEAD", "--figure", "x"], "figure 'x': must be one of", 2),
        (["prove", "x"], "slowdown 'x': must be one of hydration, round-trip", 2),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], message: str, status: int) -> None:
    command = [sys.executable, "-m", "experiments.regress", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert message in done.stderr
    assert done.returncode == status
