"""What the documentation's site has beyond docs/: called by mkdocs while it builds (`make docs`).

The commands' help is taken from the parser, the drawing of the states from their tables, published
results from results/. Pages are written to be read in the tree as well: here a block's words (`sh
at=source`) become its title, and links out of docs/ lead to where the site has those files.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # mkdocs imports its hooks by path

from relocator.cli.parser import build_parser  # noqa: E402
from relocator.running.states import TRANSITIONS, State  # noqa: E402

_FENCE = re.compile(r"^```(\w+) ([^\n]*)$", re.MULTILINE)
_MERMAID = re.compile(r"^```mermaid\n.*?^```$", re.MULTILINE | re.DOTALL)
_PLACES = {"source": "at the source", "destination": "at the destination", "both": "at both sites"}
_RESULTS = ("FORMAT.md", "demo/*", "quick/**/*", "full/**/*")


def on_files(files: Files, config: Any) -> Files:
    """Add what is made here."""
    files.append(File.generated(config, "reference/commands.md", content=_commands()))
    files.append(File.generated(config, "states.svg", content=_drawn_states()))
    for pattern in _RESULTS:
        for path in sorted((ROOT / "results").glob(pattern)):
            if path.is_file():
                name = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to where the site has things, and make titles of what stands behind a fence."""
    if page.file.src_uri.startswith("results/"):
        markdown = re.sub(r"\]\((?:\.\./)+docs/", f"]({_up(page.file.src_uri)}", markdown)
    else:
        markdown = markdown.replace("](../results/", "](results/").replace(
            "](../README.md", "](index.md"
        )
    markdown = _MERMAID.sub(
        "![The states and what leads from one to the other](states.svg)", markdown
    )
    return _FENCE.sub(_titled, markdown)


def _up(uri: str) -> str:
    return "../" * uri.count("/")


def _titled(fence: re.Match[str]) -> str:
    words = dict(word.partition("=")[::2] for word in fence[2].split())
    said = [words["file"]] if "file" in words else []
    said += [_PLACES[words["at"]]] if words.get("at") in _PLACES else []
    return f"```{fence[1]}" + (f' title="{", ".join(said)}"' if said else "")


def _commands() -> str:
    """A section for each command: its help as it is printed on 96 columns."""
    parser = build_parser()
    lines = ["# Commands", "", "As `relocator COMMAND --help` prints it.", ""]
    (subparsers,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    for name, command in subparsers.choices.items():
        command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=96)
        lines += [f"## relocator {name}", "", "```text", command.format_help().strip(), "```", ""]
    return "\n".join(lines)


def _drawn_states() -> str:
    """An SVG of the states, drawn by graphviz."""
    dot = shutil.which("dot")
    if dot is None:
        raise SystemExit("graphviz's `dot` draws the states: run scripts/install --reproduce")
    lines = ["digraph states {", "rankdir=LR; bgcolor=transparent; nodesep=0.4; ranksep=0.9;"]
    lines.append('node [shape=box style="rounded,filled" fillcolor="#eceff1"];')
    lines.append('node [fontname="sans-serif" fontsize=18];')
    lines.append('edge [fontname="sans-serif" fontsize=15 color="#ff6e40" fontcolor="#bf360c"];')
    lines.append("begin [shape=point width=0.15];")
    lines += [f'begin -> "{state}";' for state in (State.STANDBY, State.ACTIVE)]
    for state, events in TRANSITIONS.items():
        lines += [f'"{state}" -> "{after}" [label="{event}"];' for event, after in events.items()]
    lines.append("}")
    drawn = subprocess.run(
        [dot, "-Tsvg"], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    return drawn.stdout
