"""The documentation as a site is built without a warning; no page is left out, no link is dead."""

import html
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from relocator.cli.parser import COMMANDS

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


class _References(HTMLParser):
    """What a page takes from elsewhere in the site or the world."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = "href" if tag in ("a", "link") else "src"
        self.found += [value for name, value in attrs if name == wanted and value]


def test_every_picture_style_and_link_of_the_site_is_in_it(built: Path) -> None:
    pages = sorted(built.rglob("*.html"))
    missing = [
        f"{page.relative_to(built)}: {reference}"
        for page in pages
        if page.name != "404.html"
        for reference in _References(page).found
        if not urlsplit(reference).scheme
        and urlsplit(reference).path
        and not (page.parent / unquote(urlsplit(reference).path)).exists()
    ]
    assert len(pages) > 15
    assert missing == []


def test_nothing_is_fetched_from_elsewhere_to_show_a_page(built: Path) -> None:
    for page in built.rglob("*.html"):
        taken = [one for one in _References(page).found if one.startswith(("http", "//"))]
        assert [
            one for one in taken if one.endswith((".js", ".css", ".woff2", ".png", ".svg"))
        ] == []


def test_the_reference_has_every_command_and_the_states_are_drawn(built: Path) -> None:
    reference = (built / "reference" / "commands.html").read_text()
    assert [name for name in COMMANDS if f">relocator {name}<" not in reference] == []
    assert "source-sealed" in html.unescape((built / "states.svg").read_text())
