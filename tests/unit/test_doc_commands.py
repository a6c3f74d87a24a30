"""Every command in the documents is one that there is, with options that it has.

Pages whose commands are run from first to last are in tests/docs; this holds for all of them.
"""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from relocator.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("relocator", "make", "python")
ELLIPSIS = {"...", "CONTROL..."}


def blocks(text: str) -> Iterator[str]:
    """Fenced shell blocks, and indented ones that begin a paragraph."""
    for fence in re.finditer(r"^```sh[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield fence[1]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.finditer(r"(?:^|\n\n)((?: {4}[^\n]*\n)+)", prose):
        yield re.sub(r"^ {4}", "", block[1], flags=re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of ours: what stands before it (`ip netns exec`, `!`) left out."""
    for block in blocks(text):
        joined = re.sub(r"\\\n\s*", " ", block)
        for line in re.split(r"\n|;|&&|\|", joined):
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # not a command: a drawing, or a piece of a quoted text
                continue
            names = [re.sub(r".*/|(?<=python)3$", "", word) for word in words]
            start = next((at for at, name in enumerate(names) if name in PROGRAMS), None)
            if start is not None and (start == 0 or names[0] in ("ip", "!", "sudo")):
                yield [names[start], *words[start + 1 :]]


ALL = [(page.name, tuple(words)) for page in PAGES for words in commands(page.read_text())]


def named(program: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(page, words) for page, words in ALL if words[0] == program]


def test_the_documents_have_commands() -> None:
    assert len(named("relocator")) > 30
    assert len(named("make")) > 8
    assert len(named("python")) > 10


@pytest.mark.parametrize(("page", "words"), named("relocator"), ids=" ".join)
def test_relocator_takes_what_the_documents_give_it(
    page: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word for word in words[1:] if word not in ELLIPSIS]
    if len(given) == len(words) - 1:
        build_parser().parse_args(given)
        return
    with pytest.raises(SystemExit):  # it is shortened: what is there must be known
        build_parser().parse_args([given[0], "--help"])
    described = capsys.readouterr().out
    for word in given:
        if word.startswith("--"):
            assert word.partition("=")[0] in described, word


@pytest.mark.parametrize(("page", "words"), named("make"), ids=" ".join)
def test_make_has_the_targets_that_the_documents_name(page: str, words: tuple[str, ...]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words[1:]:
        if "=" in word:
            assert f"$({word.partition('=')[0]})" in makefile, word
        else:
            assert re.search(rf"^{word}:", makefile, re.MULTILINE), word


@pytest.mark.parametrize(("page", "words"), named("python"), ids=" ".join)
def test_modules_that_the_documents_run_are_there(page: str, words: tuple[str, ...]) -> None:
    for at, word in enumerate(words):
        module = words[at + 1] if word in ("-m", "--") and at + 1 < len(words) else ""
        if module.split(".")[0] in ("relocator", "testbed", "experiments", "tests"):
            assert importlib.util.find_spec(module), f"{page}: {module}"
