"""A page of the documentation, run: its commands at its sites, as they are written.

A fenced block says behind its language what it is:

    ```sh at=SITE             commands, run by `sh -e` at that site
    ```sh at=SITE stays       a command that stays; it runs until the machine ends
    ```ini at=SITE file=PATH  a file, written there
    ```xml at=both            a part of something, for who asks for it

Blocks are run in the order of the page, section by section, so that a test can do in between what
the reader's VM would.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.site import Site

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```(\w+) ([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block; `words` are what stands behind its language, as `key=value` or `key`."""

    section: str
    language: str
    words: dict[str, str]
    text: str


class Page:
    """The blocks of a page."""

    def __init__(self, name: str) -> None:
        text = (DOCS / name).read_text()
        headings = [(found.start(), found[1]) for found in _HEADING.finditer(text)]
        self.blocks = [
            Block(
                [heading for start, heading in headings if start < found.start()][-1],
                found[1],
                {key: value for key, _, value in (one.partition("=") for one in found[2].split())},
                found[3],
            )
            for found in _BLOCK.finditer(text)
        ]
        self.not_run = list(self.blocks)

    def part(self, section: str, language: str) -> str:
        """The only block of a language in a section."""
        (found,) = (
            one for one in self.blocks if (one.section, one.language) == (section, language)
        )
        self.not_run.remove(found)
        return found.text

    def run(self, section: str, sites: Mapping[str, Site]) -> None:
        """Do what the section says; each command must succeed."""
        found = [one for one in self.blocks if one.section == section and one.words["at"] in sites]
        assert found, f"nothing is said in section '{section}'"
        for block in found:
            site = sites[block.words["at"]]
            if "file" in block.words:
                site.path(block.words["file"]).write_text(block.text)
            elif "stays" in block.words:
                site.run("systemd-run", "--property=Type=notify", *_shell(block.text))
            else:
                assert block.language == "sh", block
                site.run("sh", "-ec", block.text, timeout_s=240)
            self.not_run.remove(block)


def _shell(text: str) -> list[str]:
    """One command, in a shell that it replaces."""
    return ["--setenv", f"PATH={Site.PATH}", "sh", "-c", f"exec {text.strip()}"]
