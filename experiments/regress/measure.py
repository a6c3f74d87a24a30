"""Measures a tree: boots of the lab beside each other, one a core, on the virtual clock.

What was measured is kept in OUT/measured/KEY/BOOT, where the key stands for everything that the
figures depend on: the tree's files, the lab's image, and QEMU. A tree that was measured before is
not measured again, unless it is asked for.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.regress.tree import RegressError
from experiments.running import progress
from experiments.running.batch import Batch, Job
from experiments.running.code import digest
from experiments.running.rundir import replace
from testbed.lab import image

OUT = Path("out/regress")
#: the parts that share a boot; the longest first
BOOTS = (("copies",), ("requests", "misses"))
TIMEOUT_S = 1800
TAIL_LINES = 12

Measured = dict[str, Any]


def environment() -> dict[str, str]:
    """What figures depend on besides the code: the lab's packages, and the emulator."""
    current = image.current()
    packages = current.packages.read_bytes() if current.exists() else b""
    return {
        "lab_image": current.name,
        "lab_packages": hashlib.sha256(packages).hexdigest()[:16],
        "qemu": _qemu(),
    }


def key(code: Path) -> str:
    """Equal for what must give equal figures."""
    parts = [digest(code), *environment().values()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def measure(
    code: Path,
    console: Console,
    *,
    out: Path = OUT,
    again: bool = False,
    parts: Sequence[str] = (),
    at_once: int | None = None,
) -> Measured:
    """{part: its measurements} of a tree; of some parts only, if asked.

    `at_once` boots run beside each other, one a core if it isn't given.

    Raises:
        RegressError: the lab failed; the message has the end of its log.
    """
    place = out / "measured" / key(code)
    wanted = (tuple(part for part in boot if not parts or part in parts) for boot in BOOTS)
    boots = [boot for boot in wanted if boot]
    missing = [boot for boot in boots if again or not (place / _name(boot)).exists()]
    if missing:
        place.mkdir(parents=True, exist_ok=True)
        _run(code, missing, place, console, at_once or os.cpu_count() or 1)
    return {part: _read(place, boot, part) for boot in boots for part in boot}


def _name(boot: Sequence[str]) -> str:
    return "+".join(boot)


def _read(place: Path, boot: Sequence[str], part: str) -> Measured:
    found: Measured = json.loads((place / _name(boot) / f"{part}.json").read_text())
    return found


@cache
def _qemu() -> str:
    command = ["qemu-system-x86_64", "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]


def _run(
    code: Path, boots: Sequence[Sequence[str]], place: Path, console: Console, at_once: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="building-", dir=place) as name:
        building = Path(name)
        jobs = [_job(boot, building) for boot in boots]
        with Batch(jobs, at_once, code) as batch:
            progress.follow(batch, console)
        if batch.failed is not None:
            tail = "\n".join(f"    {line}" for line in batch.failed.tail(TAIL_LINES))
            raise RegressError(f"the boot '{batch.failed.name}' failed; its log ends:\n{tail}")
        for boot in boots:
            replace(building / _name(boot), place / _name(boot))


def _job(boot: Sequence[str], building: Path) -> Job:
    name = _name(boot)
    lab = [sys.executable, "-m", "testbed.lab", "run", "--where", "vm", "--clock", "virtual"]
    lab += ["--timeout", str(TIMEOUT_S), "--out", str((building / name).resolve())]
    return Job(name, [*lab, "--", "testbed.gauge", *boot], building / f"{name}.log")
