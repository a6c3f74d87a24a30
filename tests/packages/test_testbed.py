"""The test bed as another project has it: from the wheel, in an environment without our sources."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from testbed.lab import build
from tests.docs.page import Page
from tests.support.packages import PROJECT, Installed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

PAGE = PROJECT / "docs" / "testbed.md"
PACKAGES = ["redis-server"]
ADDED = "one = 1\n\n\ndef add(a, b):\n    if a == 0:\n        return b\n    return a + b\n"
TESTS = """
import random, time
import pytest
from project import add


def test_here():
    assert add(0, 2) == 2


@pytest.mark.in_lab(seed=5)
@pytest.mark.link("mobile", rtt="80ms")
def test_there(sites, wan, lab):
    start = time.monotonic()
    sites.destination.run(["ping", "-n", "-c", 8, "-i", "0.05", sites.source.address])
    wan.cut()
    with pytest.raises(Exception, match="100% packet loss"):
        sites.destination.run(["ping", "-n", "-c", 2, "-W", 1, sites.source.address])
    wan.set(rtt="40ms", jitter="0")
    lab.record(took_s=time.monotonic() - start, drawn=lab.random.random(), sent=wan.sent_bytes()[0])
    (lab.out / "left.txt").write_text((lab.files / "given.txt").read_text() + lab.clock)
    assert add(1, 2) == 3


@pytest.mark.in_lab
@pytest.mark.parametrize("case", ["fails", "skips"])
def test_that(case, lab):
    print("said in the lab")
    if case == "skips":
        pytest.skip("not today")
    assert add(1, 1) == 3
"""


class Project:
    """A directory of somebody's; what a page runs there, it runs with the wheel installed."""

    def __init__(self, directory: Path, installed: Installed) -> None:
        self.directory, self._installed = directory, installed
        directory.mkdir()

    def path(self, inside: str) -> Path:
        path = self.directory / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def run(self, *argv: str, timeout_s: float = 0) -> str:  # noqa: ARG002
        return self._installed(*argv, cwd=self.directory)

    def stay(self, command: str) -> None:
        raise NotImplementedError(command)


def test_the_page_s_database_is_tested_over_the_pacific(
    installed: Installed, tmp_path: Path
) -> None:
    build.ensure(further=PACKAGES)
    project = Project(tmp_path / "redis", installed)
    Page(PAGE).run("Redis over the Pacific", {"redis": project})
    (figures,) = (project.directory / ".lab").glob("*/figures.json")
    found = json.loads(figures.read_text())
    assert found["first_MB"] > 4
    assert 0 < found["later_kB"] < 40
    said = (figures.parent / "source-redis-server.log").read_text()
    assert "Partial resynchronization request" in said


def test_the_page_s_link_system_and_workload_are_found_and_travel(
    installed: Installed, tmp_path: Path
) -> None:
    project = Project(tmp_path / "mine", installed)
    Page(PAGE).run("Links, systems and workloads of your own", {"mine": project})
    run = json.loads((project.directory / "run" / "run.json").read_text())
    installed("pip", "install", "--quiet", ".", cwd=project.directory)  # as after a change
    installed("pip", "uninstall", "--yes", "--quiet", "mine")
    assert (run["outcome"], run["parameters"]["system"]) == ("ok", "dd")
    assert any(check["name"] == "log" and "none torn" in check["detail"] for check in run["checks"])


@pytest.fixture(scope="module")
def project(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Project:
    installed.pip("pytest-cov")
    project = Project(tmp_path_factory.mktemp("theirs") / "project", installed)
    project.path("src/project.py").write_text(ADDED)
    project.path("tests/test_project.py").write_text(TESTS)
    project.path("given.txt").write_text("from the host, on a clock that is ")
    project.path("pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = "-q"\npythonpath = ["src"]\n'
        'lab_files = ["given.txt"]\n'
    )
    project.path(".gitignore").write_text(
        "out\nagain\n.coverage*\ncoverage.json\n*.xml\nsaid.txt\n"
    )
    project.run("git", "init", "--quiet")
    options = "--cov=project --cov-report=json --junit-xml=report.xml --lab-out=out"
    project.run("sh", "-c", f"pytest {options} >said.txt; [ $? = 1 ]")
    return project


def test_outcomes_and_what_was_said_come_back(project: Project) -> None:
    said = project.path("said.txt").read_text()
    assert "1 failed, 2 passed, 1 skipped" in said
    assert "assert 2 == 3" in said
    assert "said in the lab" in said
    assert re.search(r"test_there: took_s 2\.\d+, drawn 0\.62\d+, sent \d+", said)


def test_files_come_back(project: Project) -> None:
    (left,) = project.directory.glob("out/*test_there/left.txt")
    assert left.read_text() == "from the host, on a clock that is virtual"


def test_figures_are_in_the_report_of_junit(project: Project) -> None:
    root = ElementTree.parse(project.path("report.xml")).getroot()
    names = {one.get("name") for one in root.iter("property")}
    assert {"lab:took_s", "lab:drawn", "lab:sent"} <= names


def test_lines_that_were_run_there_are_covered(project: Project) -> None:
    report = json.loads(project.path("coverage.json").read_text())
    assert report["files"]["src/project.py"]["missing_lines"] == []


def test_the_same_test_does_the_same_again(project: Project) -> None:
    (first,) = project.directory.glob("out/*test_there/.reports.jsonl")
    options = "--cov=project --lab-out=again tests/test_project.py::test_there"
    project.run("sh", "-c", f"pytest {options}")
    (second,) = project.directory.glob("again/*test_there/.reports.jsonl")
    assert second.read_text() == first.read_text()


def test_every_block_of_the_page_is_run() -> None:
    blocks = Page(PAGE).blocks
    sections = {"Redis over the Pacific", "Links, systems and workloads of your own"}
    assert {block.section for block in blocks} == sections
    fences = re.findall(r"^```\w+.*$", PAGE.read_text(), re.MULTILINE)
    assert len(fences) == len(blocks)
