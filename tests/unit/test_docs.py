"""What the documents say is what the code does."""

import re
import runpy
import shlex
from collections.abc import Iterable
from pathlib import Path

import pytest

from experiments import downtime
from experiments.analysis.metrics import CONDITIONS, PHASES
from relocator import config
from relocator.cli import metrics
from relocator.cli.main import build_parser
from relocator.copying.recent import LARGEST_PLACES
from relocator.copying.sharing import MOST_MEMBERS
from relocator.copying.timetable import MOST_ENTRIES

ROOT = Path(__file__).parents[2]


PAGES = runpy.run_path(str(ROOT / "scripts" / "generate-docs"))["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_is_made_is_up_to_date(name: str) -> None:
    assert PAGES[name]() == (ROOT / "docs" / name).read_text(), "run scripts/generate-docs"


def test_the_table_of_downtimes_has_the_columns_that_are_printed() -> None:
    page = (ROOT / "docs" / "downtime.md").read_text()
    assert downtime.HEAD in page
    (cell,) = downtime.wanted(["20ms"], ["relocator"])
    assert downtime.row(cell, None).count("|") == len(downtime.COLUMNS) + 1


def test_every_key_of_the_plugin_is_documented() -> None:
    page = (ROOT / "docs" / "operators.md").read_text()
    for key in config.KEYS:
        if key != "mode":
            assert f"`{key}=" in page, f"docs/operators.md doesn't mention {key}="


def unnamed(names: Iterable[str], page: str) -> list[str]:
    """Those that a page doesn't name in code, whole or by their end: `_max_s`."""
    said = re.findall(r"`(\w+)[`{]", (ROOT / "docs" / page).read_text())
    ends = tuple(word for word in said if word.startswith("_"))
    return [name for name in names if name not in said and not name.endswith(ends)]


def test_every_metric_of_a_run_is_documented() -> None:
    published = (ROOT / "results" / "quick" / "metrics.csv").read_text()
    columns = [name for name in published.partition("\n")[0].split(",") if name not in CONDITIONS]
    phases = tuple(f"_{phase.replace('-', '_')}" for phase in PHASES)
    assert unnamed([name for name in columns if not name.endswith(phases)], "metrics.md") == []


def test_every_metric_of_a_running_plugin_is_documented() -> None:
    counters = [f"{name}_total" for name, _ in metrics._COUNTERS]
    gauges = [name for name, *_ in (*metrics._GAUGES, *metrics._ENUMS)]
    others = ("up", "fault", "requests_total", "request_seconds")
    names = [f"relocator_{name}" for name in (*counters, *gauges, *others)]
    assert unnamed(names, "operators.md") == []


def test_how_large_a_parameter_may_be_is_documented() -> None:
    page = (ROOT / "docs" / "operators.md").read_text()
    for key, most in (
        ("connections", config.MOST_CONNECTIONS),
        ("rate", MOST_ENTRIES),
        ("rate-group", MOST_MEMBERS),
        ("recent", LARGEST_PLACES),
    ):
        (row,) = re.findall(rf"^\| `{key}=.*$", page, re.MULTILINE)
        assert re.search(rf"\b{most}\b", row), f"docs/operators.md: {key}= is {most} at most"


def test_every_command_has_help() -> None:
    text = build_parser().format_help()
    for command in ("target", "proxy", "status", "pause", "resume", "set", "wait", "doctor"):
        assert re.search(rf"^\s+{command}\s+\w+", text, re.MULTILINE), command


def test_links_between_documents_lead_somewhere() -> None:
    for page in [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "results").glob("*.md"),
    ]:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_commands_that_a_reader_begins_with_are_understood() -> None:
    begun = [
        re.findall(r"^    (relocator .*)$", (ROOT / name).read_text(), re.MULTILINE)
        for name in ("README.md", "docs/index.md")
    ]
    assert begun[0] == begun[1]
    for line in begun[0]:
        for command in line.split("&&"):
            build_parser().parse_args(shlex.split(command, comments=True)[1:])


def test_no_page_has_the_package_installed_by_a_name_that_is_somebody_else_s() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        found = re.search(r"pip install [-\w ]*'?relocator\b(?!-)", page.read_text())
        assert found is None, f"{page.name}: {found}: PyPI has another program under that name"
