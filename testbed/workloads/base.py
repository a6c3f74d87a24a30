"""What a workload is: made on a fresh file system, started, read, and judged at the end.

    prepare   its files, while the disk is made (at the source, before anything is measured)
    start     its processes, on the guest's file system; it is told nothing of the switch
    collect   what it logged, once its processes have ended
    check     what its files must hold, on the file system as it was left behind

Each runs as processes of its own, which end by a signal and with status 0 only if they met no
error. Logs lie outside the guest's disk. All times are on the monotonic clock, in seconds.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from testbed.hosts.supervise import Supervisor


class Io(NamedTuple):
    """One I/O or request: when it ended, what it was, how long it took, where in its file."""

    time_s: float
    kind: str
    latency_s: float
    offset_bytes: int


class Work(NamedTuple):
    """One unit of real work: its kind, its bounds, and how long each of its parts took."""

    kind: str
    start_s: float
    end_s: float
    parts_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Log:
    """What workloads did."""

    ios: list[Io] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)

    def __add__(self, other: "Log") -> "Log":
        return Log(self.ios + other.ios, self.work + other.work)


class Verdict(NamedTuple):
    """What is wrong with what was left behind, and the sentence that says that all is well."""

    problems: list[str]
    good: str


class Room(NamedTuple):
    """What a workload's files take of a file system, at most, journal and directories included."""

    size_bytes: int = 0
    files: int = 0


@dataclass(frozen=True, slots=True)
class Guest:
    """What a workload is started with."""

    supervisor: Supervisor
    mount: Path
    logs: Path
    seed: int


class Workload(Protocol):
    """One kind of load; `name` is unique in a run and names its processes and logs."""

    @property
    def name(self) -> str: ...

    @property
    def room(self) -> Room: ...

    def prepare(self, point: Path, seed: int) -> dict[str, str]:
        """Makes its files; returns digests, by relative path, of those that never change."""
        ...

    def start(self, guest: Guest) -> None:
        """Starts its processes through the guest's supervisor."""
        ...

    def collect(self, logs: Path) -> Log:
        """Reads its logs; raises if it met an error that its exit status doesn't show."""
        ...

    def check(self, mount: Path, logs: Path) -> Verdict:
        """Judges its files, on a file system that is mounted and at rest (it may be read-only)."""
        ...


@dataclass(frozen=True, slots=True)
class Settings:
    """The rates that a run may choose."""

    read_iops: int = 25
    write_iops: int = 10
    ledger_iops: int = 10
    compile_period_s: float = 4.0
    sqlite_tps: float = 20.0
    postgres_tps: float = 20.0
    git_period_s: float = 1.0


#: Makes a workload of what stands behind its name and a colon ("" if nothing does) and of the run's
#: rates. ValueError, with what would be right, if it can't be.
Maker = Callable[[str, Settings], Workload]


def plain(make: Callable[[Settings], Workload]) -> Maker:
    """A workload with nothing to choose behind its name."""

    def maker(argument: str, settings: Settings) -> Workload:
        if argument:
            raise ValueError("nothing can be chosen behind its name")
        return make(settings)

    return maker


def python(module: str, *arguments: object) -> list[str]:
    """The command line of a workload that is a Python module of ours."""
    return [sys.executable, "-m", module, *(str(one) for one in arguments)]


def work_line(work: Work) -> str:
    """A unit of work as a line of a log."""
    numbers = (work.start_s, work.end_s, *work.parts_s)
    return ",".join([work.kind, *(f"{number:.9f}" for number in numbers)]) + "\n"


def parse_work(lines: Iterable[str]) -> list[Work]:
    """`work_line` backwards."""
    result = []
    for line in lines:
        kind, start_s, end_s, *parts_s = line.rstrip("\n").split(",")
        parts = tuple(float(part) for part in parts_s)
        result.append(Work(kind, float(start_s), float(end_s), parts))
    return result


def io_line(io: Io) -> str:
    """An I/O as a line of a log."""
    return f"{io.time_s:.9f},{io.kind},{io.latency_s:.9f},{io.offset_bytes}\n"


def parse_ios(lines: Iterable[str]) -> list[Io]:
    """`io_line` backwards."""
    result = []
    for line in lines:
        time_s, kind, latency_s, offset = line.rstrip("\n").split(",")
        result.append(Io(float(time_s), kind, float(latency_s), int(offset)))
    return result
