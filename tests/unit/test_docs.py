"""What the documents say is what the code does."""

import re
import subprocess
import sys
from pathlib import Path

from relocator import config
from relocator.cli.main import build_parser

ROOT = Path(__file__).parents[2]


def test_the_page_of_states_is_up_to_date(tmp_path: Path) -> None:
    before = (ROOT / "docs" / "states.md").read_text()
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['states_page'](), end='')"
    script = str(ROOT / "scripts" / "generate-docs")
    made = subprocess.run(
        [sys.executable, "-c", code, script], capture_output=True, text=True, check=True
    )
    assert made.stdout == before, "run scripts/generate-docs"


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
