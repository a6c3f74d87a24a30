"""The fio workloads: `mixed`, and job files.

`mixed` does random direct reads over the large file and small synchronous writes to another. A job
file (`fio:PATH`) includes `experiments/fio/common.fio` and is given the variables MOUNT, LOGS and
SEED; what its jobs need on the disk fio makes beforehand, except `data/large`, which is there.

All run at fixed rates, so that what is measured is the latency of a guest that has better things
to do, not how much a disk can be flogged. Every I/O is logged, against the monotonic clock, with
its place; fio ends by SIGINT, on which it writes its logs (and exits with 128).
"""

import json
import re
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.hosts.supervise import run
from testbed.workloads import files
from testbed.workloads.base import Guest, Io, Log, Room, Settings, Verdict, plain

STOP_SIGNAL = signal.SIGINT
GOOD_STATUSES = (0, 128)
# At its start fio measures how long the shortest sleep takes, and spins through what is shorter:
# with others starting beside it, it would waste a tenth of the lab's processor ever after.
SETTLE_S = 0.5
_CLOCK_MONOTONIC = "1"
WRITES_BYTES = 2 * files.MIB
MIXED_ROOM = Room(WRITES_BYTES, 1)


@dataclass(frozen=True, slots=True)
class Load:
    """What fio does: sizes of its two files, I/Os a second on each, and the seed."""

    large_bytes: int
    writes_bytes: int
    read_iops: int
    write_iops: int
    seed: int


def command(mount: Path, logs: Path, load: Load) -> list[str]:
    """fio's command line: two jobs, one process."""
    clock = ["--log_alternate_epoch=1", f"--log_alternate_epoch_clock_id={_CLOCK_MONOTONIC}"]
    log = ["--log_offset=1", "--disable_bw_measurement=1"]
    time = ["--time_based", "--runtime=1000000"]
    io = ["--thread", "--ioengine=psync", "--bs=4k", "--direct=1", "--allow_file_create=0"]
    reads = ["--name=reads", f"--filename={mount / 'data/large'}", "--rw=randread"]
    reads += [f"--size={load.large_bytes}", f"--randseed={load.seed}"]
    reads += [f"--rate_iops={load.read_iops}", f"--write_lat_log={logs / 'reads'}"]
    writes = ["--name=writes", f"--filename={mount / 'writes'}", "--rw=randwrite", "--sync=1"]
    writes += [f"--size={load.writes_bytes}", f"--randseed={load.seed + 1}"]
    writes += [f"--rate_iops={load.write_iops}", f"--write_lat_log={logs / 'writes'}"]
    report = ["--output-format=json", f"--output={logs / 'fio.json'}"]
    job = [*clock, *log, *time, *io]
    # Options before the first --name would be global only for what follows, so give them to both.
    return ["fio", *report, reads[0], *job, *reads[1:], writes[0], *job, *writes[1:]]


def parse_log(lines: Iterable[str]) -> Iterator[Io]:
    """fio's latency log: milliseconds, nanoseconds, direction, block size, offset, priority."""
    for line in lines:
        time_ms, latency_ns, direction, _, offset, *_ = (int(part) for part in line.split(","))
        kind = "read" if direction == 0 else "write"
        yield Io(time_ms / 1e3, kind, latency_ns / 1e9, offset)


def read_logs(logs: Path) -> list[Io]:
    """Every I/O of both jobs; raises if fio met an error."""
    text = (logs / "fio.json").read_text()
    report = json.loads(text[text.index("{") :])  # "terminating on signal 2" stands before it
    for job in report["jobs"]:
        if job["error"]:
            raise RuntimeError(f"fio's {job['jobname']} failed with error {job['error']}")
    result: list[Io] = []
    for path in sorted(logs.glob("*_lat.*.log")):
        with path.open() as lines:
            result.extend(parse_log(lines))
    return result


def _launch(name: str, command: list[str], guest: Guest) -> None:
    """Starts fio and lets it settle."""
    guest.supervisor.start(name, command, None, STOP_SIGNAL, GOOD_STATUSES)
    time.sleep(SETTLE_S)


def _own(logs: Path, name: str) -> Path:
    """The directory of one fio's logs."""
    directory = logs / name
    directory.mkdir(exist_ok=True)
    return directory


@dataclass(frozen=True, slots=True)
class Mixed:
    """Random reads and small synchronous writes at rates of the caller's."""

    read_iops: int
    write_iops: int
    name: str = "mixed"
    room: Room = MIXED_ROOM

    def prepare(self, point: Path, seed: int) -> dict[str, str]:  # noqa: ARG002
        files.write_zeros(point / "writes", WRITES_BYTES)
        return {}

    def start(self, guest: Guest) -> None:
        load = Load(
            large_bytes=(guest.mount / "data/large").stat().st_size,
            writes_bytes=WRITES_BYTES,
            read_iops=self.read_iops,
            write_iops=self.write_iops,
            seed=guest.seed,
        )
        _launch(self.name, command(guest.mount, _own(guest.logs, self.name), load), guest)

    def collect(self, logs: Path) -> Log:
        return Log(read_logs(logs / self.name))

    def check(self, mount: Path, logs: Path) -> Verdict:  # noqa: ARG002
        return Verdict([], "fio met no error")


@dataclass(frozen=True, slots=True)
class FioFile:
    """An fio job file; its comments may say `disk: 24M in 300 files`, what it makes there."""

    path: Path

    @property
    def name(self) -> str:
        return f"fio-{self.path.stem}"

    @property
    def room(self) -> Room:
        match = re.search(r"^# disk: (\d+)M in (\d+) files?$", self.path.read_text(), re.MULTILINE)
        return Room(int(match[1]) * files.MIB, int(match[2])) if match else Room()

    def _command(self, mount: Path, logs: Path, seed: int, *options: str) -> list[str]:
        variables = [f"MOUNT={mount}", f"LOGS={logs}", f"SEED={seed}"]
        report = ["--output-format=json", f"--output={logs / 'fio.json'}"]
        return ["env", *variables, "fio", *report, *options, str(self.path)]

    def prepare(self, point: Path, seed: int) -> dict[str, str]:
        for directory in re.findall(r"^directory=\$\{MOUNT\}/(.+)$", self.path.read_text(), re.M):
            (point / directory).mkdir(parents=True, exist_ok=True)  # fio makes files only
        with tempfile.TemporaryDirectory() as logs:
            run(self._command(point, Path(logs), seed, "--create_only=1"), timeout_s=600)
        return {}

    def start(self, guest: Guest) -> None:
        logs = _own(guest.logs, self.name)
        _launch(self.name, self._command(guest.mount, logs, guest.seed), guest)

    def collect(self, logs: Path) -> Log:
        return Log(read_logs(logs / self.name))

    def check(self, mount: Path, logs: Path) -> Verdict:  # noqa: ARG002
        return Verdict([], "fio met no error")


def _make_file(argument: str, settings: Settings) -> FioFile:  # noqa: ARG001
    if not Path(argument).is_file():
        raise ValueError(f"there is no file '{argument}'; give fio:PATH")
    return FioFile(Path(argument))


KINDS = {
    "mixed": plain(lambda settings: Mixed(settings.read_iops, settings.write_iops)),
    "fio": _make_file,
}
