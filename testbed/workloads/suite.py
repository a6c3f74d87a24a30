"""The workloads by name: what a run or a scenario asks for, as `mixed,compile,sqlite`.

| name | what it does |
|---|---|
| `mixed` | fio: random reads of the large file, small synchronous writes, at the given rates |
| `fio:PATH` | an fio job file, see `experiments/fio/` |
| `compile` | unpacks, compiles, links and runs a source tree |
| `sqlite` | transactions and look-ups in a database (`sqlite:delete`: without a write-ahead log) |
| `git` | check-outs, commits, status and log in a repository |
| `ledger` | writes that must not be lost; runs always, named or not |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.network.wan import ProfileError
from testbed.workloads.base import Guest, Io, Log, Room, Verdict, Work, Workload
from testbed.workloads.compile import Compile
from testbed.workloads.fio import FioFile, Mixed
from testbed.workloads.git import Git
from testbed.workloads.ledger import Ledger
from testbed.workloads.sqlite import JOURNALS, Sqlite

__all__ = [
    "Guest",
    "Io",
    "Log",
    "Room",
    "Settings",
    "Verdict",
    "Work",
    "Workload",
    "collect",
    "parse",
    "room",
]

PARAMETER = "workloads"
KNOWN = "mixed, compile, sqlite, sqlite:delete, git, ledger or fio:PATH, separated by commas"


@dataclass(frozen=True, slots=True)
class Settings:
    """The rates that a run may choose."""

    read_iops: int = 25
    write_iops: int = 10
    ledger_iops: int = 10
    compile_period_s: float = 4.0
    sqlite_tps: float = 20.0
    git_period_s: float = 1.0


def _one(word: str, settings: Settings) -> Workload:
    name, colon, argument = word.partition(":")
    if name == "fio" and argument:
        path = Path(argument)
        if not path.is_file():
            raise ProfileError(PARAMETER, repr(word), f"there is no file {argument}")
        return FioFile(path)
    if name == "sqlite" and argument in ("", *JOURNALS) and colon == ":" * bool(argument):
        return Sqlite(settings.sqlite_tps, argument or "wal")
    if colon:
        raise ProfileError(PARAMETER, repr(word), f"known are {KNOWN}")
    if name == "mixed":
        return Mixed(settings.read_iops, settings.write_iops)
    if name == "compile":
        return Compile(settings.compile_period_s)
    if name == "git":
        return Git(settings.git_period_s)
    if name == "ledger":
        return Ledger(settings.ledger_iops)
    raise ProfileError(PARAMETER, repr(word), f"known are {KNOWN}")


def parse(names: str, settings: Settings) -> list[Workload]:
    """The workloads of a list of names, in the order to start them; the ledger is always there.

    fio goes first: at its start it measures how long the shortest sleep takes, see `fio.SETTLE_S`.
    """
    words = [word.strip() for word in names.split(",")] if names.strip() else []
    if "ledger" not in words:
        words.append("ledger")
    found: list[Workload] = []
    for word in words:
        workload = _one(word, settings)
        if workload.name in (other.name for other in found):
            raise ProfileError(PARAMETER, repr(names), f"{workload.name} stands there twice")
        found.append(workload)
    order = {"fio": 0, "mixed": 0, "ledger": 1}
    return sorted(found, key=lambda one: order.get(one.name.partition("-")[0], 2))


def collect(workloads: Sequence[Workload], logs: Path) -> Log:
    """What all of them did."""
    return sum((workload.collect(logs) for workload in workloads), Log())


def room(workloads: Sequence[Workload]) -> Room:
    """What all of them take of the disk."""
    each = [workload.room for workload in workloads]
    return Room(sum(one.size_bytes for one in each), sum(one.files for one in each))
