"""The workflow, with Snakemake and a project whose runs are pretended."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import reproduce
from experiments.scenarios import cells
from experiments.scenarios.cells import Cell

A = Cell("some/a=1%,b=x+y/one/s1", "some", {"a": "1%"}, "one", 1, "virtual", 60, ())
CELLS = [
    A,
    replace(A, id="some/same/s1", same_as=A.id),
    replace(A, id="some/real/s1", clock="real"),
    replace(A, id="some/oracle/s1", trace_of=A.id),
]
# Stands in for experiments/running/matrix.py: notes the order and makes the run's directory.
MATRIX = """
import sys
from pathlib import Path
cell, out = sys.argv[2], Path(sys.argv[sys.argv.index("--out") + 1])
with (out / "order").open("a") as order:
    order.write(cell + "\\n")
(out / "runs" / cell).mkdir(parents=True, exist_ok=True)
(out / "runs" / cell / "run.json").write_text("{}")
"""
# The same, by the real runner; a run ends as the file `fails` beside the matrix says.
RUNNER = f"""
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
    del sys.modules[name]
sys.path.insert(0, {str(reproduce.PROJECT)!r})
from pathlib import Path
from experiments.running import runner
from experiments.scenarios import cells
from tests.unit.test_runner import ends
out = Path(sys.argv[sys.argv.index("--out") + 1])
cell = next(cell for cell in cells.read(out / "matrix.json") if cell.id == sys.argv[2])
with (out / "order").open("a") as order:
    order.write(cell.id + "\\n")
runner.run(cell, out, ends("failed" if cell.id in (out / "fails").read_text() else "ok"))
"""
METRICS = """
import sys
from pathlib import Path
runs, out = map(Path, sys.argv[1:])
(out / "metrics.csv").write_text(str(len(list(runs.rglob("run.json")))))
"""


def snakemake(project: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    args = reproduce._parser().parse_args(["--cores", "2"])
    command = [*reproduce.snakemake(args, out), *more]
    given = command.index(f"project={reproduce.PROJECT}")
    command[given] = f"project={project}"
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)


def a_project(tmp_path: Path) -> tuple[Path, Path]:
    project, out = tmp_path / "the project", tmp_path / "an out"
    for name in ("", "running", "analysis"):
        (project / "experiments" / name).mkdir(parents=True, exist_ok=True)
        (project / "experiments" / name / "__init__.py").touch()
    (project / "experiments/running/matrix.py").write_text(MATRIX)
    (project / "experiments/analysis/metrics.py").write_text(METRICS)
    out.mkdir()
    reproduce.workflow(CELLS, out)
    return project, out


def test_every_run_is_made_once_after_what_it_needs_then_the_steps(tmp_path: Path) -> None:
    project, out = a_project(tmp_path)
    done = snakemake(project, out)
    assert done.returncode == 0, done.stderr
    order = (out / "order").read_text().split()
    assert sorted(order) == sorted(cell.id for cell in CELLS)
    for cell in CELLS:
        assert all(order.index(other) < order.index(cell.id) for other in cell.needs)
    assert (out / "metrics.csv").read_text() == "4"
    again = snakemake(project, out, "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_cluster_is_told_one_run_by_name(tmp_path: Path) -> None:
    project, out = a_project(tmp_path)
    job = ["--mode", "remote", "--force", "--target-jobs", "run_0_some_a_1_b_x_y_one_s1:"]
    done = snakemake(project, out, *job)
    assert done.returncode == 0, done.stderr
    assert (out / "order").read_text() == f"{A.id}\n"


def test_a_run_on_the_real_clock_has_the_machine_and_on_a_cluster_four_processors() -> None:
    profile = str(reproduce.PROJECT / "experiments/running/profiles/slurm")
    for arguments, threads in ((["--cores", "3"], 3), (["--profile", profile], 4)):
        args = reproduce._parser().parse_args(arguments)
        assert f"processors={threads}" in reproduce.snakemake(args, Path("out"))


def test_a_failed_run_is_named_and_only_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project, out = a_project(tmp_path)
    (project / "experiments/running/matrix.py").write_text(RUNNER)
    monkeypatch.setattr(reproduce, "PROJECT", project)
    monkeypatch.setattr(reproduce, "_image_once", lambda _found: None)
    monkeypatch.setattr(cells, "quick_or_full", lambda _quick, _seeds: CELLS)
    (out / "fails").write_text("some/real/s1")
    assert reproduce.main(["--out", str(out), "--cores", "2"]) == 1
    shown = capsys.readouterr().out
    assert "3 ok, 1 failed" in shown
    assert "failed: some/real/s1: as asked" in shown
    assert len((out / "order").read_text().split()) == len(CELLS)
    (out / "order").unlink()
    (out / "fails").write_text("")
    assert reproduce.main(["--out", str(out), "--cores", "2"]) == 0
    assert (out / "order").read_text() == "some/real/s1\n"
    assert "4 ok" in capsys.readouterr().out
    assert (out / "metrics.csv").read_text() == "4"


def test_wrong_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--seeds", "0"], ["--cores", "x"], ["--profile", "/nowhere"]):
        with pytest.raises(SystemExit) as caught:
            reproduce.main(arguments)
        assert caught.value.code == 2
        assert f"'{arguments[1]}': must be" in capsys.readouterr().err


def test_the_quick_matrix_is_a_workflow(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.reproduce", "--quick", "--dry-run"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0, done.stderr
    known = json.loads((tmp_path / "matrix.json").read_text())["cells"]
    jobs = set(re.findall(r"^rule (run_\w+):", done.stdout + done.stderr, re.MULTILINE))
    assert len(jobs) == len(known)
