"""What the documents say is what the code does."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from relocator import config
from relocator.cli.main import build_parser

ROOT = Path(__file__).parents[2]


PAGES = runpy.run_path(str(ROOT / "scripts" / "generate-docs"))["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_is_made_is_up_to_date(name: str) -> None:
    assert PAGES[name]() == (ROOT / "docs" / name).read_text(), "run scripts/generate-docs"


def test_every_key_of_the_plugin_is_documented() -> None:
    page = (ROOT / "docs" / "operators.md").read_text()
    for key in config.KEYS:
        if key != "mode":
            assert f"`{key}=" in page, f"docs/operators.md doesn't mention {key}="


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
