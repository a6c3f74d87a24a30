"""Reads one run directory, as results/FORMAT.md describes it, and nothing else.

A run is immutable and is believed as a whole or not at all: `load_run` either returns a `Run` whose
files all have the documented columns and whose outcome is `ok`, or raises `RunError` with one
sentence that names the directory and says what is wrong. Nothing after this point checks again.

A run with `--background off` copies the rest of the disk when its observation is over, because the
copy is to be proved; that is no part of what on-demand copy alone does. `Run` ends where the
observation ended: its tables are cut there.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

FORMAT = 2
STAYING = ("remote", "stay")  # systems whose disk stays at the source
FIRST = ("mirror", "offline")  # systems whose disk is there when the guest is
Events = tuple[Mapping[str, Any], ...]

COLUMNS: dict[str, tuple[str, ...]] = {
    "links.csv": ("t_s", "link", "rx_bytes", "tx_bytes"),
    "presence.csv": (
        *("t_s", "present_blocks", "total_blocks"),
        *("on_demand_bytes", "background_bytes", "hole_bytes"),
    ),
    "latency.csv": ("t_s", "kind", "latency_s", "offset_bytes"),
    "work.csv": ("kind", "start_s", "end_s", "parts_s", "phase"),
    "requests.csv": ("t_s", "kind", "offset_bytes", "length_bytes"),
}
RUN_KEYS = (
    *("clock", "seed", "outcome", "parameters", "calibration"),
    *("versions", "phases", "checks", "summary"),
)


class RunError(Exception):
    """A run directory that can't be used; the message says which and why."""


@dataclass(frozen=True)
class Run:
    """One finished, successful run. All times are seconds on the run clock (0: workloads start)."""

    directory: Path
    document: Mapping[str, Any]
    events: Events
    links: pd.DataFrame
    presence: pd.DataFrame
    latency: pd.DataFrame
    work: pd.DataFrame
    requests: pd.DataFrame

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
        """Whether the disk moves."""
        return self.system not in STAYING

    @property
    def moves(self) -> bool:
        """Whether the VM moves."""
        return self.system != "stay"

    @property
    def system(self) -> str:
        """What becomes of the disk: a name of results/FORMAT.md, "Systems"."""
        return self.parameters["system"]

    @property
    def link_bytes_per_s(self) -> float:
        """The WAN's rate as asked for, headers included."""
        return self.parameters["rate_bits_per_s"] / 8

    def time_of(self, event: str) -> float | None:
        """When `event` first happened, or None if it did not."""
        return next((row["t_s"] for row in self.events if row["event"] == event), None)

    @property
    def switch_s(self) -> float:
        """When the VM began to move; only of a run in which it does (`moves`)."""
        return self.summary["switch_s"]

    @property
    def end_s(self) -> float:
        """When the observation ended."""
        return _observation_end_s(self.directory, self.parameters, self.events)

    @property
    def independent_s(self) -> float | None:
        """From the switch until the source could go, by background copy; None if it never could."""
        observed = self.relocates and not _copied_only_as_proof(self.parameters)
        return self.summary["relocation_s"] if observed else None


def brief(reason: str) -> str:
    """Why a run did not go well, in a line: the first of its reason's."""
    return reason.partition("\n")[0]


def _copied_only_as_proof(parameters: Mapping[str, Any]) -> bool:
    """Whether the rest of the disk is copied when the observation is over."""
    return parameters["background"] == "off" and parameters["system"] not in (*STAYING, *FIRST)


def _observation_end_s(directory: Path, parameters: Mapping[str, Any], events: Events) -> float:
    ends = ["workloads-ended"]
    if _copied_only_as_proof(parameters):
        ends.append("background-started")
    times = [event["t_s"] for event in events if event["event"] in ends]
    if not times:
        raise RunError(f"{directory}: events.jsonl has no workloads-ended")
    return min(times)


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
    events = _read_events(directory / "events.jsonl")
    end_s = _observation_end_s(directory, document["parameters"], events)
    tables = {}
    for name, columns in COLUMNS.items():
        table = _read_csv(directory / name, columns)
        time = table["end_s" if name == "work.csv" else "t_s"]
        tables[name] = table[time <= end_s].reset_index(drop=True)
    return Run(
        directory=directory,
        document=document,
        events=events,
        links=tables["links.csv"],
        presence=tables["presence.csv"],
        latency=tables["latency.csv"],
        work=tables["work.csv"],
        requests=tables["requests.csv"],
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
        frame = pd.read_csv(path, dtype={"kind": str, "parts_s": str, "phase": str})
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise RunError(f"{path}: not a table: {error}") from error
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise RunError(f"{path}: these columns are missing: {', '.join(missing)}")
    return frame


def _read_events(path: Path) -> Events:
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


def replace(new: Path, place: Path) -> None:
    """Renames `new` to `place`; what stood there is removed after."""
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}-old-", dir=place.parent))
    try:
        if place.exists():
            place.rename(old / place.name)
        new.rename(place)
    finally:
        shutil.rmtree(old)
