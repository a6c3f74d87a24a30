"""What the guest said, read, and held against what its disks hold.

A guest that moves leaves a part of its report at every host it was at. Put together in the order of
its way they are one text: a line may begin at one host and end at the next.
"""

import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.guest import disks
from testbed.hosts import proof
from testbed.workloads import ledger

# What the kernel says of a disk that failed, of a file system in doubt, of a task that hangs or was
# killed; and a Python that could not even report why it ended.
_BAD = re.compile(
    r"guest: error.*|.*(I/O error|EXT[34]-fs (error|warning)|Aborting journal|Remounting filesystem"
    r"|blocked for more than|Kernel panic|Call Trace|BUG:|segfault|traps:|Out of memory).*"
    r"|[A-Za-z.]*Error: .*"
)


@dataclass(frozen=True, slots=True)
class Read:
    """A block of the large file that was read, and was right."""

    disk: int
    block: int
    end_s: float
    took_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """All of it; times are the guest's monotonic clock, which stands while the guest does."""

    acknowledged: dict[int, list[ledger.Acknowledged]]  # of each disk
    reads: list[Read]
    errors: list[str]


def errors(report: bytes, console: str) -> list[str]:
    """What went wrong, as the workload and the kernel say it; empty if nothing did."""
    said = [line for line in report.decode().splitlines() if line.startswith("error,")]
    return said + [line.strip() for line in console.splitlines() if _BAD.fullmatch(line.strip())]


def parse(texts: Iterable[bytes]) -> Report:
    """The parts of a report, in the order of the guest's way."""
    found = Report({}, [], [])
    *lines, _unfinished = b"".join(texts).decode().split("\n")
    for line in lines:
        kind, *words = line.split(",")
        if kind == "ack":
            disk, sequence, slot = (int(word) for word in words[:3])
            end_s, took_s = (float(word) for word in words[3:])
            one = ledger.Acknowledged(sequence, slot, end_s, took_s)
            found.acknowledged.setdefault(disk, []).append(one)
        elif kind == "read":
            disk, block = (int(word) for word in words[:2])
            end_s, took_s = (float(word) for word in words[2:])
            found.reads.append(Read(disk, block, end_s, took_s))
        elif kind == "error":
            found.errors.append(line)
    return found


def problems(texts: Sequence[bytes], consoles: Sequence[str], images: Sequence[Path]) -> list[str]:
    """Everything that is not as it must be once the guest has shut down; empty if all is well.

    `images` are its disks where it was last. Each must be clean, hold in its ledger every record
    that was acknowledged, and in its large file what was always there.
    """
    whole = parse(texts)
    found = [*whole.errors, *(one for console in consoles for one in errors(b"", console))]
    if not any(whole.acknowledged.values()):
        found.append("no record was acknowledged")
    for number, image in enumerate(images):
        of_disk = whole.acknowledged.get(number, [])
        found += [f"disk {number}: {one}" for one in _disk_problems(image, of_disk)]
    return found


def _disk_problems(image: Path, acknowledged: Sequence[ledger.Acknowledged]) -> list[str]:
    found = proof.file_system(image)
    sequences = [one.sequence for one in acknowledged]
    if sequences != sorted(set(sequences)):
        found.append("records were acknowledged twice or out of order")
    of_ledger, of_large = contents_problems(image, acknowledged)
    return found + of_ledger + of_large


def contents_problems(
    image: Path, acknowledged: Sequence[ledger.Acknowledged]
) -> tuple[list[str], list[str]]:
    """What is wrong with a disk's ledger, and with its large file."""
    with tempfile.TemporaryDirectory(prefix="relocator-guest-") as directory:
        copy = Path(directory) / "file"
        of_ledger = ledger.check_file(disks.dump(image, "/ledger", copy), acknowledged)
        return of_ledger, disks.large_problems(disks.dump(image, "/large", copy))
