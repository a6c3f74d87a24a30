"""The workflows: what they run exists here, and what a step leaves in the summary."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
STEP = re.compile(r"scripts/ci (?P<target>[a-z]+)(?P<variables>( [A-Z]+=\S+)*)")


def _steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                yield path.name, step


def _makefile() -> str:
    return (ROOT / "Makefile").read_text()


def test_there_is_a_workflow_for_each_check() -> None:
    assert {path.stem for path in WORKFLOWS} == {"check", "test", "regress", "nightly"}


@pytest.mark.parametrize("step", [step["run"] for _, step in _steps() if "run" in step])
def test_a_step_runs_a_target_with_variables_that_it_knows(step: str) -> None:
    found = STEP.fullmatch(step)
    assert found, f"'{step}' is no scripts/ci TARGET [VARIABLE=VALUE]..."
    recipe = re.search(rf"^{found['target']}:.*\n((?:\t.*\n)+)", _makefile(), re.MULTILINE)
    assert recipe, f"the Makefile has no target '{found['target']}'"
    for variable in re.findall(r"([A-Z]+)=", found["variables"]):
        assert f"$({variable})" in recipe[1], f"{found['target']} doesn't use {variable}"


def test_every_step_runs_something_or_uses_a_version_of_an_action() -> None:
    for name, step in _steps():
        assert "run" in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), (name, step)


def _project(tmp_path: Path, recipe: str) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "ci", tmp_path / "scripts" / "ci")
    (tmp_path / "Makefile").write_text(f"thing:\n\t{recipe}\n")
    return tmp_path / "scripts" / "ci"


def _run(script: Path, summary: Path) -> int:
    told = os.environ | {"GITHUB_STEP_SUMMARY": str(summary)}
    command = [script, "thing", "A=1"]
    return subprocess.run(command, env=told, capture_output=True, check=False).returncode


def test_a_step_that_fails_fails_and_shows_the_end_of_what_it_printed(tmp_path: Path) -> None:
    script = _project(tmp_path, "@seq 100; echo '\x1b[31mbroken'; exit 3")
    assert _run(script, tmp_path / "summary") != 0
    lines = (tmp_path / "summary").read_text().splitlines()
    assert lines[0].startswith("## make thing A=1: failed with status 2 after 0 min")
    assert "broken" in lines
    assert "50" not in lines


def test_a_step_shows_the_summary_that_its_target_left(tmp_path: Path) -> None:
    script = _project(
        tmp_path, "@mkdir -p out/thing && echo '### all is well' >out/thing/summary.md"
    )
    assert _run(script, tmp_path / "summary") == 0
    text = (tmp_path / "summary").read_text()
    assert text.startswith("## make thing A=1: passed")
    assert text.endswith("### all is well\n")
