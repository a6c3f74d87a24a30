"""The ledger: `python3 -m testbed.workloads.ledger FILE LOG RATE SEED`, and its checker.

Records of 4 KiB, each with a sequence number, its slot and a checksum, are written to random
slots of a preallocated file with O_DIRECT and O_DSYNC. Once the kernel has acknowledged a write a
line goes to LOG (which lies outside the disk): sequence, slot, time, latency. Whatever happened
in between, the disk must at the end hold in every slot the record that was acknowledged last.
"""

import mmap
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from testbed.workloads import files
from testbed.workloads.base import Guest, Io, Log, Room, Verdict, plain, python
from testbed.workloads.records import RECORD_BYTES, record, sequence_of
from testbed.workloads.stop import Stop

LEDGER_BYTES = 2 * files.MIB
ROOM = Room(LEDGER_BYTES, 1)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One write that the kernel said is on the disk."""

    sequence: int
    slot: int
    time_s: float
    latency_s: float


def parse_log(lines: Iterable[str]) -> list[Acknowledged]:
    """The log's lines; a torn last one can't be: a line is one write call."""
    result = []
    for line in lines:
        sequence, slot, time_s, latency_s = line.split(",")
        result.append(Acknowledged(int(sequence), int(slot), float(time_s), float(latency_s)))
    return result


def check(
    acknowledged: Iterable[Acknowledged], slots: int, read_slot: Callable[[int], bytes]
) -> list[str]:
    """Every slot that does not hold what it must, in words; empty if all is well.

    A slot may hold a later record than the last acknowledged one: the write in flight at the end.
    """
    last = dict.fromkeys(range(slots), -1)
    newest = -1
    for one in acknowledged:
        last[one.slot] = max(last[one.slot], one.sequence)
        newest = max(newest, one.sequence)
    problems = []
    for slot, sequence in last.items():
        found = read_slot(slot)
        if found == bytes(RECORD_BYTES):
            if sequence >= 0:
                problems.append(f"slot {slot} is empty, write {sequence} was acknowledged")
            continue
        held = sequence_of(found, slot)
        if held is None:
            problems.append(f"slot {slot} holds no valid record of its own")
        elif held < sequence or held > newest + 1:
            problems.append(f"slot {slot} holds write {held}, write {sequence} was acknowledged")
    return problems


def check_file(path: Path, acknowledged: Iterable[Acknowledged]) -> list[str]:
    """`check` on a ledger file."""
    data = path.read_bytes()
    return check(
        acknowledged,
        len(data) // RECORD_BYTES,
        lambda slot: data[slot * RECORD_BYTES : (slot + 1) * RECORD_BYTES],
    )


@dataclass(frozen=True, slots=True)
class Ledger:
    """The workload; the log's name is `ledger.acks`."""

    iops: int
    name: str = "ledger"
    room: Room = ROOM

    def prepare(self, point: Path, seed: int) -> dict[str, str]:  # noqa: ARG002
        files.write_zeros(point / "ledger", LEDGER_BYTES)
        return {}

    def start(self, guest: Guest) -> None:
        arguments = (guest.mount / "ledger", guest.logs / "ledger.acks", self.iops, guest.seed)
        guest.supervisor.start(self.name, python("testbed.workloads.ledger", *arguments))

    def acknowledged(self, logs: Path) -> list[Acknowledged]:
        """Every write that was acknowledged."""
        return parse_log((logs / "ledger.acks").read_text().splitlines())

    def collect(self, logs: Path) -> Log:
        return Log(
            [
                Io(one.time_s, self.name, one.latency_s, one.slot * RECORD_BYTES)
                for one in self.acknowledged(logs)
            ]
        )

    def check(self, mount: Path, logs: Path) -> Verdict:
        acknowledged = self.acknowledged(logs)
        good = f"all {len(acknowledged)} acknowledged writes are in place"
        return Verdict(check_file(mount / "ledger", acknowledged), good)


def write(path: Path, log: int, rate: float, seed: int, stop: Stop) -> None:
    """Writes at `rate` a second until told to stop; any error ends it."""
    source = random.Random(seed)
    buffer = mmap.mmap(-1, RECORD_BYTES)  # page aligned, as O_DIRECT wants it
    file = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
    slots = os.fstat(file).st_size // RECORD_BYTES
    next_s = time.monotonic()
    sequence = 0
    while not stop.requested:
        slot = source.randrange(slots)
        buffer[:] = record(sequence, slot)
        start_s = time.monotonic()
        if os.pwrite(file, buffer, slot * RECORD_BYTES) != RECORD_BYTES:
            raise OSError(f"{path}: a write came back short")
        end_s = time.monotonic()
        os.write(log, f"{sequence},{slot},{end_s:.9f},{end_s - start_s:.9f}\n".encode())
        sequence += 1
        next_s = max(next_s + 1 / rate, end_s)
        stop.sleep_until(next_s)
    os.close(file)


def main(arguments: list[str]) -> int:
    path, log_path, rate, seed = arguments
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    write(Path(path), log, float(rate), int(seed), Stop())
    os.close(log)
    return 0


KINDS = {"ledger": plain(lambda settings: Ledger(settings.ledger_iops))}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
