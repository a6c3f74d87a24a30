"""The committed figures, results/regress/baseline.json, and what noise does to them, noise.json.

A baseline is of one product, one lab and one way of measuring. When the lab's packages, QEMU or
testbed/gauge are others than it was measured with, its figures don't compare: then its commit's
product is measured again, here and now.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.regress import measure, tree
from experiments.regress.figures import values
from experiments.regress.tree import RegressError
from experiments.running.code import digest
from testbed.lab.payload import PROJECT

KEPT = PROJECT / "results" / "regress"
GAUGE = "testbed/gauge"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Baseline:
    """Figures, and what they are of."""

    commit: str
    measured_with: dict[str, str]
    figures: dict[str, float]


def measured_with() -> dict[str, str]:
    """The lab, the emulator, and the way of measuring, here and now."""
    return {**measure.environment(), "gauge": digest(PROJECT, (GAUGE,))}


def load(kept: Path = KEPT) -> Baseline:
    """The committed one.

    Raises:
        RegressError: there is none, or it is of another format.
    """
    document = _read(kept / "baseline.json", "accept")
    return Baseline(document["commit"], document["measured_with"], document["figures"])


def save(baseline: Baseline, kept: Path = KEPT) -> None:
    """Writes it in place of what is there."""
    document = {
        "format": FORMAT,
        "commit": baseline.commit,
        "measured_with": baseline.measured_with,
        "figures": baseline.figures,
    }
    _write(kept / "baseline.json", document)


def noise(kept: Path = KEPT) -> dict[str, float]:
    """{figure: the most that an irrelevant change moved it by}; nothing if it wasn't measured."""
    if not (kept / "noise.json").exists():
        return {}
    document = _read(kept / "noise.json", "noise")
    return {name: max(found.values()) for name, found in document["figures"].items() if found}


def save_noise(moved: Mapping[str, Mapping[str, float]], commit: str, kept: Path = KEPT) -> None:
    """`moved`: {figure: {irrelevant change: by how much it moved}}; others that are kept stay."""
    path = kept / "noise.json"
    known = _read(path, "noise")["figures"] if path.exists() else {}
    figures = {name: {**known.get(name, {}), **found} for name, found in moved.items()}
    _write(path, {"format": FORMAT, "commit": commit, "figures": figures})


def comparable(baseline: Baseline, console: Console, **how: Any) -> dict[str, float]:
    """The baseline's figures, as they are here: measured again if they were measured otherwise."""
    now = measured_with()
    other = [name for name, what in now.items() if baseline.measured_with.get(name) != what]
    if not other:
        return baseline.figures
    names = ", ".join(other)
    console.print(
        f"the baseline was measured with another {names}: {baseline.commit} is measured here"
    )
    with tree.of_commit(baseline.commit) as code:
        return values(measure.measure(code, console, **how))


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise RegressError(f"{path}: there is none; `regress {command}` makes it") from None
    if document.get("format") != FORMAT:
        raise RegressError(f"{path}: format {document.get('format')}, not {FORMAT}")
    return document  # type: ignore[no-any-return]


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
