"""A client: reads, writes and flushes its sectors through a site's server, and notes what it saw.

It is a process of its own (a fork, so that it knows the ledger), which may be killed at any moment;
its notes are in a file, a line each. Several requests are under way at once, never two of them on
the same sector. A connection that is lost is made again, as QEMU does; what was under way is
*orphaned*: nobody knows what became of it. Told to stop (SIGTERM), it waits for its replies first,
as a VM that is paused to move.
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.campaign.ledger import Ledger, first_number
from tests.support.stamps import SECTOR_BYTES, written

LENGTHS = (1, 3, 8, 8, 8, 16, 24, 64, 65, 200)
KINDS = ("write", "zero", "trim", "read", "flush")
WEIGHTS = (50, 7, 5, 30, 8)
AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Work:
    """What a client does: `pace_s` passes between its requests, on average."""

    client: int
    first: int
    end: int
    depth: int
    pace_s: float
    block_sectors: int


@dataclass(slots=True)
class _Request:
    kind: str
    number: int
    first: int
    count: int
    buffer: Any
    fua: bool


class Guest:
    """The process, as the campaign sees it."""

    def __init__(self, work: Work, life: int, site: str, where: tuple[str, int], log: Path):
        self.work, self.life, self.site = work, life, site
        self.log = log
        self._where = where
        self._seen = 0
        self.pid = 0
        self.ended = False

    def start(self, ledger: Ledger, seed: int, enter: Any) -> None:
        """Fork it; `enter` is called in it first."""
        self.log.touch()
        self.pid = os.fork()
        if self.pid:
            return
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            enter()
            _Client(self, ledger, random.Random(f"{seed}/{self.life}")).run(*self._where)
        except BaseException as error:
            with self.log.open("a") as file:
                file.write(json.dumps([time.monotonic(), "broken", repr(error)]) + "\n")
            os._exit(1)
        os._exit(0)

    def stop(self) -> None:
        """Let it wait for its replies and end."""
        if not self.ended:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.ended = True

    def poll(self) -> bool:
        """Whether it has ended."""
        if not self.ended:
            self.ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return self.ended

    def notes(self) -> Iterator[list[Any]]:
        """What it has noted since the last call: time, kind, and the rest."""
        with self.log.open("rb") as file:
            file.seek(self._seen)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._seen += len(line)
                yield json.loads(line)


class _Client:
    """The same, within."""

    def __init__(self, guest: Guest, ledger: Ledger, choose: random.Random) -> None:
        self._work, self._site = guest.work, guest.site
        self._ledger = ledger
        self._choose = choose
        self._log = os.open(guest.log, os.O_WRONLY | os.O_APPEND)
        self._number = first_number(guest.work.client, guest.life)
        self._under_way: dict[int, _Request] = {}
        self._stopping = False
        self._handle: Any = None

    def _note(self, kind: str, *rest: Any) -> None:
        now_s = time.monotonic()
        if hasattr(Ledger, f"_{kind}"):
            self._ledger.note(now_s, kind, *rest)
        os.write(self._log, json.dumps([round(now_s, 6), kind, *rest]).encode() + b"\n")

    def run(self, address: str, port: int) -> NoReturn:
        """Work until told to stop."""

        def stop(_number: int, _frame: Any) -> None:
            self._stopping = True

        signal.signal(signal.SIGTERM, stop)
        next_s = time.monotonic()
        while not self._stopping or self._under_way:
            if self._handle is None and not self._connect(address, port):
                if self._stopping:
                    break
                time.sleep(AGAIN_S)
                continue
            now_s = time.monotonic()
            if not self._stopping and len(self._under_way) < self._work.depth and now_s >= next_s:
                self._begin()
                next_s = now_s + self._choose.expovariate(1.0) * self._work.pace_s
            wait_s = max(0.0, min(0.05, next_s - time.monotonic()))
            self._turn(0.05 if len(self._under_way) == self._work.depth else wait_s)
        self._note("stopped")
        os._exit(0)

    def _connect(self, address: str, port: int) -> bool:
        import nbd

        handle = nbd.NBD()
        try:
            handle.connect_tcp(address, str(port))
        except nbd.Error:
            return False
        self._handle = handle
        self._note("connected")
        return True

    @contextmanager
    def _losing(self) -> Iterator[None]:
        import nbd

        with suppress(nbd.Error):
            yield

    def _turn(self, wait_s: float) -> None:
        """Wait for replies, and take them."""
        handle = self._handle
        if self._under_way:
            with self._losing():
                handle.poll(max(1, int(wait_s * 1000)))
        else:
            time.sleep(wait_s)
            with self._losing():
                handle.poll(0)
        for cookie in list(self._under_way):
            self._look(cookie)
        if handle.aio_is_dead() or handle.aio_is_closed():
            for request in self._under_way.values():
                if request.kind in ("write", "zero", "trim"):
                    self._note("orphan", request.number)
            self._under_way.clear()
            self._handle = None
            self._note("lost")

    def _look(self, cookie: int) -> None:
        import nbd

        handle = self._handle
        try:
            if not handle.aio_command_completed(cookie):
                return
        except nbd.Error as error:
            if handle.aio_is_dead() or handle.aio_is_closed():
                return  # an orphan
            request = self._under_way.pop(cookie)
            self._note("failed", request.kind, request.first, request.count, error.errno)
            if request.kind in ("write", "zero", "trim"):
                self._note("fail", request.number)
            return
        self._end(self._under_way.pop(cookie))

    def _end(self, request: _Request) -> None:
        """A request has been answered."""
        if request.kind == "read":
            data = bytes(request.buffer.to_bytearray())
            if wrong := self._ledger.wrong(request.first, data):
                self._note("wrong", wrong)
            self._note("read", request.first, request.count)
        elif request.kind == "flush":
            self._note("flushed", request.number)
        else:
            self._note("ack", request.number, int(request.fua))

    def _begin(self) -> None:
        """Send a random request."""
        import nbd

        choose, work, handle = self._choose, self._work, self._handle
        kind = choose.choices(KINDS, WEIGHTS)[0]
        count = min(choose.choice(LENGTHS), work.end - work.first)
        first = choose.randrange(work.first, work.end - count + 1)
        if kind == "trim" or choose.random() < 0.5:  # whole blocks
            block = work.block_sectors
            start, stop = -(-first // block) * block, (first + count) // block * block
            first, count = start, stop - start
        fua = choose.random() < 0.07
        if kind != "flush" and (count <= 0 or self._busy(first, count)):
            return
        self._number += 1
        number, flags = self._number, nbd.CMD_FLAG_FUA if fua else 0
        length, offset = count * SECTOR_BYTES, first * SECTOR_BYTES
        buffer = None
        if kind == "flush":
            self._note("flush", number, self._site)
        elif kind != "read":
            self._note("send", number, first, count, int(kind != "write"), self._site)
        with self._losing():
            if kind == "read":
                buffer = nbd.Buffer(length)
                cookie = handle.aio_pread(buffer, offset)
            elif kind == "flush":
                first = count = 0
                cookie = handle.aio_flush()
            elif kind == "write":
                buffer = nbd.Buffer.from_bytearray(bytearray(written(number, first, count)))
                cookie = handle.aio_pwrite(buffer, offset, flags=flags)
            elif kind == "zero":
                cookie = handle.aio_zero(
                    length, offset, flags=flags | choose.choice((0, nbd.CMD_FLAG_NO_HOLE))
                )
            else:
                cookie = handle.aio_trim(length, offset, flags=flags)
            self._under_way[cookie] = _Request(kind, number, first, count, buffer, fua)
            return
        if kind in ("write", "zero", "trim"):
            self._note("orphan", number)

    def _busy(self, first: int, count: int) -> bool:
        """Whether one of these sectors is being read or written."""
        return any(
            one.first < first + count and first < one.first + one.count
            for one in self._under_way.values()
        )
