"""Clients that write stamped sectors to a disk and note what was acknowledged (see versions.py)."""

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import nbd

from tests.support.stamps import SECTOR_BYTES, ZEROS, source_sector, written
from tests.support.versions import Trace

BLOCK_SECTORS = 8
LENGTHS = (1, 3, 8, 8, 8, 16, 24, 64, 65, 200)
KINDS = ("write", "zero", "trim", "read", "flush")
WEIGHTS = (52, 9, 6, 24, 9)
BACK_S = 120.0


class Ledger:
    """The trace, the numbers, and what happens when something was promised, for all clients.

    `away`: they are at the source, whose promises are no others'; `asked` and `took` say what a
    store at the destination must have of that.
    """

    def __init__(self, mark: Callable[[str], None], *, away: bool = False) -> None:
        self.trace = Trace()
        self.away = away
        self._mark = mark
        self._lock = threading.Lock()
        self._numbers = 0
        self._flushes = 0

    def send(self, first: int, count: int, zero: bool) -> int:
        """A write is about to be sent; its number."""
        with self._lock:
            self._numbers += 1
            self.trace.note("send", self._numbers, first, count, zero)
            return self._numbers

    def acknowledge(self, number: int, fua: bool) -> None:
        """Its reply has come."""
        with self._lock:
            self.trace.note("away" if self.away else "ack", number)
        if fua:
            self.mark(f"fua-{number}")

    def flush(self) -> str:
        """A flush is about to be sent; its name."""
        with self._lock:
            self._flushes += 1
            if not self.away:
                self.trace.note("flush", f"flush-{self._flushes}")
            return f"flush-{self._flushes}"

    def mark(self, name: str) -> None:
        """Something has been promised."""
        if self.away:
            return
        self._mark(name)
        with self._lock:
            self.trace.note("bound", name, self._numbers)

    def asked(self) -> None:
        """The source is about to be asked for a new epoch, or to be sealed."""
        with self._lock:
            self.trace.note("asked")

    def took(self, epoch: int | None) -> None:
        """What was acknowledged until then is older than the epoch, or than the seal (None)."""
        with self._lock:
            self.trace.note("took", epoch)


class Client:
    """One connection, and the sectors `first..end`, which nobody else writes.

    A server that is killed is waited for; the request that was under way is sent again, as the same
    write, since nobody knows what became of it.
    """

    def __init__(
        self, connect: Callable[[], Any], ledger: Ledger, first: int, end: int, seed: int
    ) -> None:
        self._connect = connect
        self._handle = connect()
        self._ledger = ledger
        self._first, self._end = first, end
        self._random = random.Random(seed)
        self._holds: dict[int, tuple[int, bool]] = {}
        self.requests = 0
        self.reconnected = 0

    def close(self) -> None:
        """Disconnect."""
        with suppress(nbd.Error):  # its server may have been killed
            self._handle.shutdown()

    def step(self) -> None:
        """One random request."""
        count = min(self._random.choice(LENGTHS), self._end - self._first)
        first = self._random.randrange(self._first, self._end - count + 1)
        kind = self._random.choices(KINDS, WEIGHTS)[0]
        if kind == "trim" or self._random.random() < 0.5:  # whole blocks
            first, end = -(-first // BLOCK_SECTORS), (first + count) // BLOCK_SECTORS
            first, count = first * BLOCK_SECTORS, (end - first) * BLOCK_SECTORS
        self.requests += 1
        if kind == "flush":
            self.flush()
        elif count > 0 and kind == "read":
            self.check(first, count)
        elif count > 0:
            self._change(kind, first, count)

    def flush(self) -> None:
        """A flush, and the mark that it has completed."""
        name = self._ledger.flush()
        self._ask(lambda: self._handle.flush())  # noqa: PLW0108 - the handle may change
        self._ledger.mark(name)

    def check(self, first: int, count: int) -> None:
        """A read, compared sector by sector with what was written here or the source has."""
        data = self._ask(lambda: self._handle.pread(count * SECTOR_BYTES, first * SECTOR_BYTES))
        for sector in range(first, first + count):
            at = (sector - first) * SECTOR_BYTES
            found = bytes(data[at : at + SECTOR_BYTES])
            if found != self._expected(sector):
                held = self._holds.get(sector)
                raise AssertionError(f"sector {sector} reads as {found[:24]!r}, not {held}")

    def check_written(self) -> None:
        """Read everything that was written by this client."""
        sectors = sorted(self._holds)
        starts = [at for at, one in enumerate(sectors) if at == 0 or sectors[at - 1] != one - 1]
        for at, after in pairwise([*starts, len(sectors)]):
            for first in range(sectors[at], sectors[at] + after - at, 512):
                self.check(first, min(512, sectors[at] + after - at - first))

    def expected(self) -> bytes:
        """The content of its sectors."""
        return b"".join(self._expected(sector) for sector in range(self._first, self._end))

    def check_all(self) -> None:
        """Read everything that is this client's."""
        for first in range(self._first, self._end, 512):
            self.check(first, min(512, self._end - first))

    def _expected(self, sector: int) -> bytes:
        number, zero = self._holds.get(sector, (0, False))
        if number == 0:
            return source_sector(sector)
        return ZEROS if zero else written(number, sector, 1)

    def _change(self, kind: str, first: int, count: int) -> None:
        zero = kind != "write"
        fua = self._random.random() < 0.07
        flags = nbd.CMD_FLAG_FUA if fua else 0
        length, offset = count * SECTOR_BYTES, first * SECTOR_BYTES
        number = self._ledger.send(first, count, zero)
        if kind == "write":
            data = written(number, first, count)
            self._ask(lambda: self._handle.pwrite(data, offset, flags))
        elif kind == "zero":
            flags |= self._random.choice((0, nbd.CMD_FLAG_NO_HOLE))
            self._ask(lambda: self._handle.zero(length, offset, flags))
        else:
            self._ask(lambda: self._handle.trim(length, offset, flags))
        self._ledger.acknowledge(number, fua)
        for sector in range(first, first + count):
            self._holds[sector] = (number, zero)

    def _ask(self, request: Callable[[], Any]) -> Any:
        """Send a request until it is answered."""
        give_up_s = time.monotonic() + BACK_S
        while True:
            try:
                return request()
            except nbd.Error as error:
                if time.monotonic() > give_up_s or self._handle.aio_is_ready():
                    raise AssertionError(f"a request failed: {error}") from error
                self._handle = self._again(give_up_s)

    def _again(self, give_up_s: float) -> Any:
        while True:
            try:
                handle = self._connect()
                self.reconnected += 1
                return handle
            except nbd.Error:
                if time.monotonic() > give_up_s:
                    raise
                time.sleep(0.05)


def regions(sectors: int, count: int) -> list[tuple[int, int]]:
    """The disk's sectors in `count` parts; neighbours share a block."""
    cuts = [sectors * at // count | 1 for at in range(1, count)]
    return list(zip([0, *cuts], [*cuts, sectors], strict=True))
