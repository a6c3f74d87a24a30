"""A page of the documentation, run: its commands at its sites, as they are written.

A fenced block says behind its language what it is:

    ```sh at=SITE             commands, run by `sh -e` at that site
    ```sh at=SITE stays       a command that stays; it runs until the machine ends
    ```ini at=SITE file=PATH  a file, written there
    ```xml at=both            a part of something, for who asks for it
    ```sh at=SITE lab         needs the lab's kernel

Blocks are run in the order of the page, section by section, so that a test can do in between what
the reader's VM would.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_BLOCK = re.compile(r"^```(\w+) ([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block; `words` are what stands behind its language, as `key=value` or `key`."""

    section: str
    language: str
    words: dict[str, str]
    text: str


class Place(Protocol):
    """Where commands are run."""

    def path(self, inside: str) -> Path:
        """A file there, as it is reached from here."""

    def run(self, *argv: str, timeout_s: float = ...) -> str:
        """Run a command that must succeed."""

    def stay(self, command: str) -> None:
        """Start a command that stays, and wait until it says that it is ready (sd_notify)."""


class Page:
    """The blocks of a page: those for the lab, or the others."""

    def __init__(self, path: Path, *, lab: bool = False) -> None:
        text = path.read_text()
        headings = [(found.start(), found[1]) for found in _HEADING.finditer(text)]
        blocks = [
            Block(
                [heading for start, heading in headings if start < found.start()][-1],
                found[1],
                {key: value for key, _, value in (one.partition("=") for one in found[2].split())},
                found[3],
            )
            for found in _BLOCK.finditer(text)
        ]
        self.blocks = [one for one in blocks if ("lab" in one.words) == lab]
        self.not_run = list(self.blocks)

    def part(self, section: str, language: str) -> str:
        """The only block of a language in a section."""
        wanted = (section, language)
        (found,) = (one for one in self.blocks if (one.section, one.language) == wanted)
        self.not_run.remove(found)
        return found.text

    def run(self, section: str, sites: Mapping[str, Place]) -> str:
        """Do what the section says; each command must succeed. What they print."""
        found = [one for one in self.blocks if one.section == section and one.words["at"] in sites]
        assert found, f"nothing is said in section '{section}'"
        printed = ""
        for block in found:
            site = sites[block.words["at"]]
            if "file" in block.words:
                site.path(block.words["file"]).write_text(block.text)
            elif "stays" in block.words:
                site.stay(block.text.strip())
            else:
                assert block.language == "sh", block
                printed += site.run("sh", "-ec", block.text, timeout_s=240)
            self.not_run.remove(block)
        return printed
