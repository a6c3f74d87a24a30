"""Runs one cell and keeps what came of it, whatever that is.

    OUT/runs/CELL/        a run, complete and never changed: run.json and the rest of
                          results/FORMAT.md, cell.json (which cell, command, code), lab.log
    OUT/building/         runs that are under way
    OUT/superseded/CELL/  what stood there before: runs that failed, or were of other code

A run is built beside its place, flushed to the disk and renamed, so a directory in `runs` with a
run.json is whole. A run that failed, or was refused because its link was off, is kept like any
other and marked by the `outcome` in its run.json; if the lab ended without one (time-out, crash),
one that says so is written here. An interrupted run leaves nothing.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from experiments.running import code, trace
from experiments.running.batch import Batch, Job
from experiments.running.rundir import FORMAT, RUN_KEYS
from experiments.scenarios.cells import TRACE, Cell
from testbed.lab import image
from testbed.lab.payload import PROJECT

CELL_FORMAT = 1
POLL_S = 0.1
TAIL_LINES = 3

#: The command of a cell, given where the run's files go and the trace's file.
Command = Callable[[Cell, Path, Path], list[str]]


class RunnerError(Exception):
    """The cell can't be run now; the message says why."""


def lab_command(cell: Cell, run: Path, traced: Path) -> list[str]:
    return cell.command(sys.executable, str(run), str(traced), _installed)


def _installed(program: str) -> str:
    """Its path; the name alone if there is none, and the lab will say so."""
    return shutil.which(program) or program


def shown_command(cell: Cell) -> str:
    """The command line for people and for comparison: it names no place of this machine."""
    return " ".join(cell.command("python", "RUN"))


def _digest(program: str) -> str | None:
    path = Path(_installed(program))
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def directory(out: Path, cell: str) -> Path:
    return out / "runs" / cell


def building(out: Path, cell: str) -> Path:
    return out / "building" / cell.replace("/", "~")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one if there is none, or it is something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return document if isinstance(document, dict) else {}


def outcome(out: Path, cell: str) -> str | None:
    """`ok`, `failed` or `refused`; None if the cell has not run."""
    return read_json(directory(out, cell) / "run.json").get("outcome")


def well(cell: Cell, outcome: str | None) -> bool:
    """Whether a run may end like this: `ok`, or failed if its scenario says that it may."""
    return outcome == "ok" or cell.finding(outcome) is not None


def is_current(out: Path, cell: Cell, version: Mapping[str, str]) -> bool:
    """Whether the cell's run went well (or failed as it may), with this command and code."""
    if not well(cell, outcome(out, cell.id)):
        return False
    kept = read_json(directory(out, cell.id) / "cell.json")
    kept_code = kept.get("code", {})
    same_code = kept_code.get("run") == version["run"]
    if same_code and _is_of_others(cell):
        programs = kept.get("machine", {}).get("programs")
        same_code = kept_code.get("others") == version["others"] and programs == _programs(cell)
    return same_code and kept.get("command") == shown_command(cell)


def _is_of_others(cell: Cell) -> bool:
    """Whether it runs a system or a workload that another project announces."""
    words = (word.strip().partition(":")[0] for text in cell.arguments for word in text.split(","))
    return not code.of_others().isdisjoint(words)


def _programs(cell: Cell) -> dict[str, str | None]:
    return {name: _digest(name) for name in cell.programs}


def run(cell: Cell, out: Path, command: Command = lab_command) -> str:
    """Runs the cell, whose needs have run, into its place; how it ended."""
    with _workplace(out, cell.id) as place:
        started_s, version = time.monotonic(), code.version()
        if cell.same_as is not None:
            _copy(directory(out, cell.same_as), place)
            status: int | None = None
        elif (reason := _prepare(cell, out, place)) is not None:
            status = None
            _mark(cell, place, reason)
        else:
            status = _execute(cell, place, command)
            if not read_json(place / "run.json"):
                _mark(cell, place, _last_words(place, status))
        document = {
            "format": CELL_FORMAT,
            "cell": cell.document(),
            "command": shown_command(cell),
            "code": version,
            "machine": {
                "kernel": platform.release(),
                "processors": os.cpu_count(),
                "python": platform.python_version(),
                "lab_image": image.current().name,
                "programs": _programs(cell),
            },
            "status": status,
            "wall_s": round(time.monotonic() - started_s, 1),
        }
        _write_json(place / "cell.json", document)
        publish(out, cell.id, place)
    return outcome(out, cell.id) or "failed"


@contextmanager
def _workplace(out: Path, cell: str) -> Iterator[Path]:
    """A directory to build the run in, ours alone; it is gone afterwards."""
    place = building(out, cell)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(place.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunnerError(f"{cell}: somebody else is running it into {out}") from None
        try:
            shutil.rmtree(place, ignore_errors=True)  # of one that was killed
            place.mkdir()
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)
            Path(lock.name).unlink(missing_ok=True)


def clear(out: Path) -> None:
    """Removes what killed runs left in `building`; runs under way are left alone."""
    for place in (out / "building").glob("*"):
        if place.is_dir():
            with suppress(RunnerError), _workplace(out, place.name.replace("~", "/")):
                pass


def _prepare(cell: Cell, out: Path, place: Path) -> str | None:
    """Makes the files that the run brings along; why it can't be run, if so."""
    if cell.trace_of is None:
        return None
    if (ended := outcome(out, cell.trace_of)) != "ok":
        return f"the run that its order is made of, {cell.trace_of}, ended as {ended}"
    try:
        trace.write(directory(out, cell.trace_of), place / TRACE)
    except (OSError, ValueError) as error:
        return f"no order can be made of {cell.trace_of}: {error}"
    return None


def _execute(cell: Cell, place: Path, command: Command) -> int | None:
    """The program's exit status; its output is in lab.log."""
    job = Job(cell.id, command(cell, place, place / TRACE), place / "lab.log")
    with Batch([job], 1, PROJECT) as batch:
        while batch.poll():
            time.sleep(POLL_S)
    return job.status


def _last_words(place: Path, status: int | None) -> str:
    lines = Job("", (), place / "lab.log").tail(TAIL_LINES)
    return f"the lab ended with status {status} and left no run.json: {' | '.join(lines)}"


def _mark(cell: Cell, place: Path, reason: str) -> None:
    """A run.json for a run that made none."""
    nothing = dict.fromkeys(RUN_KEYS)
    known = {"format": FORMAT, "clock": cell.clock, "seed": cell.seed, "checks": []}
    ended = {"outcome": "failed", "reason": reason, "phases": {}}
    _write_json(place / "run.json", {**nothing, **known, **ended})


def _copy(source: Path, place: Path) -> None:
    """The same files under another name: they never change."""
    for path in sorted(source.rglob("*")):
        target = place / path.relative_to(source)
        if path.is_dir():
            target.mkdir()
        elif path.name != "cell.json":
            try:
                os.link(path, target)
            except OSError:  # a file system without links
                shutil.copy2(path, target)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def publish(out: Path, cell: str, place: Path) -> None:
    """Flushes the finished run and moves it to its place, which must be free, or is made so."""
    for path in [*place.rglob("*"), place]:
        _flush(path)
    final = directory(out, cell)
    supersede(out, cell)
    final.parent.mkdir(parents=True, exist_ok=True)
    place.rename(final)
    _flush(final.parent)


def supersede(out: Path, cell: str) -> None:
    """Moves what stands in the cell's place out of the way; what is no whole run is removed."""
    final = directory(out, cell)
    if not (final / "run.json").exists():
        shutil.rmtree(final, ignore_errors=True)
        return
    old = out / "superseded" / cell
    old.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.name) for path in old.iterdir()), default=0)
    final.rename(old / str(number))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
