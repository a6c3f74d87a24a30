"""The fio workload: random direct reads over a large file, small synchronous writes to another.

Both at a fixed rate, so that what is measured is the latency of a guest that has better things to
do, not how much a disk can be flogged. Every I/O is logged, against the monotonic clock, with its
place; fio ends by SIGINT, on which it writes its logs (and exits with 128).
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

STOP_SIGNAL = signal.SIGINT
GOOD_STATUSES = (0, 128)
# At its start fio measures how long the shortest sleep takes, and spins through what is shorter:
# with others starting beside it, it would waste a tenth of the lab's processor ever after.
SETTLE_S = 0.5
_CLOCK_MONOTONIC = "1"


@dataclass(frozen=True, slots=True)
class Io:
    """One I/O: when it ended (monotonic clock), what it was, how long it took, where."""

    time_s: float
    kind: str
    latency_s: float
    offset_bytes: int


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
