"""The loads of the local path: one fio job a measurement, over NBD, closed loop.

fio's nbd engine keeps `depth` requests in flight on one connection. A job runs for a fixed time
over a fixed region of the disk, so that every system is asked for the same blocks; what fio counts
in that time is the figure.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.hosts.supervise import run

REGION_BYTES = 256 * 2**20
_FILL_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """One fio job; `pattern` is fio's `rw`."""

    name: str
    pattern: str
    block_bytes: int
    depth: int

    @property
    def direction(self) -> str:
        return "write" if self.pattern.endswith("write") else "read"


# "read 4k @16": random, 16 in flight; the 1M reads are sequential.
LOADS = (
    Load("read 4k @1", "randread", 4096, 1),
    Load("read 4k @4", "randread", 4096, 4),
    Load("read 4k @16", "randread", 4096, 16),
    Load("read 1M @4", "read", 2**20, 4),
    Load("write 4k @1", "randwrite", 4096, 1),
    Load("write 4k @16", "randwrite", 4096, 16),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """What one job measured: requests a second and latency percentiles in seconds."""

    iops: float
    p50_s: float
    p99_s: float


def unix_uri(socket: Path) -> str:
    return f"nbd+unix:///?socket={socket}"


def command(load: Load, uri: str, seconds: float, seed: int) -> list[str]:
    """fio's command line for one measurement."""
    job = [f"--rw={load.pattern}", f"--bs={load.block_bytes}", f"--iodepth={load.depth}"]
    job += [f"--size={REGION_BYTES}", f"--runtime={round(seconds * 1000)}ms", "--time_based"]
    nbd = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", "--output-format=json"]
    return [*nbd, *job, f"--randseed={seed}"]


def fill(uri: str) -> None:
    """Reads the whole region once, so that what copies on read has it."""
    job = ["--name=fill", "--ioengine=nbd", f"--uri={uri}", "--rw=read", "--bs=256k"]
    run(["fio", *job, "--iodepth=4", f"--size={REGION_BYTES}"], timeout_s=_FILL_TIMEOUT_S)


def parse(output: str, load: Load) -> Figure:
    """The figure from fio's JSON; remarks that fio prints before it are skipped.

    Raises:
        ValueError: fio reported an error, or nothing was done.
    """
    job: dict[str, Any] = json.loads(output[output.index("{") :])["jobs"][0]
    side = job[load.direction]
    if job["error"] or not side["total_ios"]:
        raise ValueError(f"fio: error {job['error']}, {side['total_ios']} requests done")
    percentiles = side["clat_ns"]["percentile"]
    return Figure(side["iops"], percentiles["50.000000"] / 1e9, percentiles["99.000000"] / 1e9)


def measure(load: Load, uri: str, seconds: float, seed: int) -> Figure:
    """Runs one job and returns its figure."""
    return parse(run(command(load, uri, seconds, seed), timeout_s=seconds + 60), load)
