"""Reads one run directory, as results/FORMAT.md describes it, and nothing else.

A run is immutable and is believed as a whole or not at all: `load_run` either returns a `Run` whose
files all have the documented columns and whose outcome is `ok`, or raises `RunError` with one
sentence that names the directory and says what is wrong. Nothing after this point checks again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

FORMAT = 1

COLUMNS: dict[str, tuple[str, ...]] = {
    "links.csv": ("t_s", "link", "rx_bytes", "tx_bytes"),
    "presence.csv": (
        "t_s",
        "present_blocks",
        "total_blocks",
        "on_demand_bytes",
        "background_bytes",
        "hole_bytes",
    ),
    "latency.csv": ("t_s", "kind", "latency_s", "offset_bytes"),
    "work.csv": ("cycle", "start_s", "end_s", "unpack_s", "compile_s", "run_s", "phase"),
}
RUN_KEYS = (
    "clock",
    "seed",
    "outcome",
    "parameters",
    "calibration",
    "versions",
    "phases",
    "checks",
    "summary",
)


class RunError(Exception):
    """A run directory that can't be used; the message says which and why."""


@dataclass(frozen=True)
class Run:
    """One finished, successful run. All times are seconds on the run clock (0: workloads start)."""

    directory: Path
    document: Mapping[str, Any]
    events: tuple[Mapping[str, Any], ...]
    links: pd.DataFrame
    presence: pd.DataFrame
    latency: pd.DataFrame
    work: pd.DataFrame

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.document["parameters"]

    @property
    def calibration(self) -> Mapping[str, Any]:
        return self.document["calibration"]

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.document["summary"]

    @property
    def checks(self) -> list[Mapping[str, Any]]:
        return self.document["checks"]

    @property
    def relocates(self) -> bool:
        """False in mode `remote`: the VM moves and its disk stays."""
        return self.parameters["mode"] != "remote"

    @property
    def link_bytes_per_s(self) -> float:
        """The WAN's rate as asked for, headers included."""
        return self.parameters["rate_bits_per_s"] / 8

    def time_of(self, event: str) -> float | None:
        """When `event` first happened, or None if it did not."""
        return next((row["t_s"] for row in self.events if row["event"] == event), None)

    @property
    def switch_s(self) -> float:
        return self.summary["switch_s"]

    @property
    def end_s(self) -> float:
        ended = self.time_of("workloads-ended")
        if ended is None:
            raise RunError(f"{self.directory}: events.jsonl has no workloads-ended")
        return ended


def load_run(directory: Path) -> Run:
    """The run in `directory`; RunError if it is missing, failed, damaged or of another format."""
    document = read_document(directory)
    if document["outcome"] != "ok":
        failed = "; ".join(
            f"{check['name']}: {check['detail']}" for check in document["checks"] if not check["ok"]
        )
        reason = document.get("reason") or failed or "no reason given"
        raise RunError(f"{directory}: the run ended as '{document['outcome']}': {reason}")
    if document["summary"] is None or document["calibration"] is None:
        raise RunError(f"{directory}: run.json is 'ok' but has no summary or no calibration")
    tables = {name: _read_csv(directory / name, COLUMNS[name]) for name in COLUMNS}
    return Run(
        directory=directory,
        document=document,
        events=_read_events(directory / "events.jsonl"),
        links=tables["links.csv"],
        presence=tables["presence.csv"],
        latency=tables["latency.csv"],
        work=tables["work.csv"],
    )


def read_document(directory: Path) -> dict[str, Any]:
    """run.json of a run that ended in any way, checked for format and keys."""
    path = directory / "run.json"
    if not directory.is_dir():
        raise RunError(f"{directory}: there is no such run directory")
    if not path.is_file():
        raise RunError(f"{directory}: no run.json: the run did not finish writing")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: not JSON: {error}") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise RunError(f"{path}: format {found!r}; this program reads format {FORMAT}")
    missing = [key for key in RUN_KEYS if key not in document]
    if missing:
        raise RunError(f"{path}: these keys are missing: {', '.join(missing)}")
    return document


def _read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise RunError(f"{path}: not a table: {error}") from error
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise RunError(f"{path}: these columns are missing: {', '.join(missing)}")
    return frame


def _read_events(path: Path) -> tuple[Mapping[str, Any], ...]:
    events: list[Mapping[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing") from error
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            events.append({"t_s": float(event["t_s"]), **event})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RunError(f"{path}:{number}: not an event: {line[:80]!r}") from error
    return tuple(events)
