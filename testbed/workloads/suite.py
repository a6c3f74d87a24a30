"""The workloads by name: what a run or a scenario asks for, as `mixed,compile,sqlite`.

To add one, write a file here with a `Workload` and its KINDS, or announce one from another project
(`testbed.discovery`).

| name | what it does |
|---|---|
| `mixed` | fio: random reads of the large file, small synchronous writes, at the given rates |
| `fio:PATH` | an fio job file, see `experiments/fio/` |
| `compile` | unpacks, compiles, links and runs a source tree |
| `sqlite` | transactions and look-ups in a database (`sqlite:delete`: without a write-ahead log) |
| `postgres` | pgbench against a PostgreSQL server, which is recovered at the end |
| `git` | check-outs, commits, status and log in a repository |
| `ledger` | writes that must not be lost; runs always, named or not |
"""

from collections.abc import Sequence
from pathlib import Path

import testbed.workloads
from testbed import discovery
from testbed.network.wan import ProfileError
from testbed.workloads.base import Guest, Io, Log, Maker, Room, Settings, Verdict, Work, Workload

__all__ = [
    "WORKLOADS",
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
#: By name: the KINDS of this package's modules, and what other projects announce.
WORKLOADS: dict[str, Maker] = {}
for _module in discovery.modules(testbed.workloads):
    if _module.__name__ != __name__:
        WORKLOADS |= getattr(_module, "KINDS", {})
WORKLOADS |= discovery.announced(discovery.WORKLOADS)
KNOWN = f"{', '.join(sorted(WORKLOADS))}, separated by commas (fio:PATH, sqlite:delete)"


def _one(word: str, settings: Settings) -> Workload:
    name, colon, argument = word.partition(":")
    if name not in WORKLOADS or (colon and not argument):
        raise ProfileError(PARAMETER, repr(word), f"known are {KNOWN}")
    try:
        return WORKLOADS[name](argument, settings)
    except ValueError as error:
        raise ProfileError(PARAMETER, repr(word), str(error)) from error


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
