"""Records what the guest asks of its disk, request by request, with the kernel's own tracer.

`block_rq_issue` of the guest's nbd devices, in an instance of its own below /sys/kernel/tracing, on
the monotonic clock: whatever the workload and the system under test, the same events. What it gives
is the order in which blocks were first wanted (an oracle's order) and which of them ever were.

A line of the trace, of which the bytes, the sector (512 bytes) and the letters are used (R reads, W
writes, D discards, F flushes):

    fio-812 [000] ..... 12.345678: block_rq_issue: 43,1 R 4096 () 2048 + 8 [fio]
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.hosts.supervise import ProcessError, run

_TRACING = Path("/sys/kernel/tracing")
_INSTANCE = _TRACING / "instances" / "relocator"
_BUFFER_KIB = 16384
_SECTOR_BYTES = 512
_MINOR_BITS = 20
_LINE = re.compile(
    r"(\d+\.\d+): block_rq_issue: \d+,\d+ (\w+) \d+ \(.*?\) (\d+) \+ (\d+) \[", re.ASCII
)
_KINDS = {"R": "read", "W": "write", "D": "trim"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the guest: when it was issued (monotonic clock), what, where, how much."""

    time_s: float
    kind: str
    offset_bytes: int
    length_bytes: int


def parse(lines: Iterable[str]) -> Iterator[Request]:
    """The requests that carry or discard data."""
    for line in lines:
        match = _LINE.search(line)
        if match is None:
            continue
        time_s, letters, sector, sectors = match.groups()
        kind = next((_KINDS[letter] for letter in letters if letter in _KINDS), None)
        if kind is not None and int(sectors):
            start, length = int(sector) * _SECTOR_BYTES, int(sectors) * _SECTOR_BYTES
            yield Request(float(time_s), kind, start, length)


class Trace:
    """Records from `start` to `stop`; leaves nothing behind in the kernel."""

    def start(self, devices: Sequence[Path]) -> None:
        if not (_TRACING / "instances").exists():
            run(["mount", "-t", "tracefs", "tracefs", str(_TRACING)])
        _INSTANCE.mkdir()
        self._set("buffer_size_kb", str(_BUFFER_KIB))
        self._set("trace_clock", "mono")
        wanted = " || ".join(f"dev == {_number(device)}" for device in devices)
        self._set("events/block/block_rq_issue/filter", wanted)
        self._set("events/block/block_rq_issue/enable", "1")

    def stop(self) -> list[Request]:
        """What was recorded; raises if some of it had to be dropped."""
        self._set("tracing_on", "0")
        try:
            for path in sorted(_INSTANCE.glob("per_cpu/cpu*/stats")):
                lost = re.search(r"overrun: (\d+)", path.read_text())
                if lost is not None and int(lost[1]):
                    raise ProcessError(f"the tracer dropped {lost[1]} of the guest's requests")
            with (_INSTANCE / "trace").open() as lines:
                return list(parse(lines))
        finally:
            self.discard()

    def discard(self) -> None:
        """Removes the kernel's buffers, if there are any."""
        if _INSTANCE.exists():
            _INSTANCE.rmdir()

    def _set(self, name: str, value: str) -> None:
        (_INSTANCE / name).write_text(value)


def _number(device: Path) -> int:
    """The kernel's own number of a block device, as its filters compare it."""
    major, minor = (Path("/sys/block") / device.name / "dev").read_text().split(":")
    return int(major) << _MINOR_BITS | int(minor)
