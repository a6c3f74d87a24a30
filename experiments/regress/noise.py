"""How far a change that changes nothing moves each figure.

The lab's virtual clock counts instructions, and a longer source file takes longer to read and to
compile: everything after it happens a little later. These are such changes, in modules that are on
the way of every request; what they move is no regression.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.regress import judge, measure, tree
from experiments.regress.figures import FIGURES, values
from testbed.lab.payload import PROJECT

PRODUCT = PROJECT / "relocator"
_REMARK = "# What stands here changes nothing but the length of this file, by a line.\n"


def _comment(path: str, lines: int) -> Callable[[Path], None]:
    return lambda product: _append(product / path, "\n" + _REMARK * lines)


def _docstring(path: str) -> Callable[[Path], None]:
    def edit(product: Path) -> None:
        file = product / path
        file.write_text(file.read_text().replace('"""', '"""' + "More words about it. " * 40, 1))

    return edit


def _function(path: str) -> Callable[[Path], None]:
    text = '\n\ndef _spare(value: int) -> int:\n    """Used by nobody."""\n    return value + 1\n'
    return lambda product: _append(product / path, text)


def _append(file: Path, text: str) -> None:
    file.write_text((file.read_text() if file.exists() else "") + text)


#: each edits a directory `relocator`
CHANGES: dict[str, Callable[[Path], None]] = {
    "a comment in hydration": _comment("copying/hydration.py", 1),
    "forty comments in plugin": _comment("plugin.py", 40),
    "a docstring in connection": _docstring("source/connection.py"),
    "an unused function in pacer": _function("copying/pacer.py"),
    "a module that nobody imports": _comment("copying/spare.py", 20),
}


@contextmanager
def changed(edit: Callable[[Path], None], product: Path = PRODUCT) -> Iterator[Path]:
    """A tree with a product that was edited."""
    with tempfile.TemporaryDirectory(prefix="regress-changed-") as name:
        copy = Path(name) / "relocator"
        shutil.copytree(product, copy, ignore=shutil.ignore_patterns("__pycache__"))
        edit(copy)
        with tree.with_product(copy) as code:
            yield code


def measured(names: Iterable[str], console: Console, **how: Any) -> dict[str, dict[str, float]]:
    """{figure: {irrelevant change: by how much it moved}} of changes by their names; `how` is for
    `measure`."""
    with tree.with_product(PRODUCT) as code:
        before = values(measure.measure(code, console, **how))
    moved: dict[str, dict[str, float]] = {one.name: {} for one in FIGURES}
    for name in names:
        console.print(f"noise: {name}")
        with changed(CHANGES[name]) as code:
            after = values(measure.measure(code, console, **how))
        for one in FIGURES:
            by = judge.change(one, before[one.name], after[one.name])
            moved[one.name][name] = float(f"{abs(by):.3g}")
    return moved
