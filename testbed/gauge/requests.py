"""What a request costs the processor, in instructions: there is no link, so nothing else counts.

The kinds of request are measured one after the other on one pair of servers, each on blocks of its
own, one request at a time: then the order of events doesn't depend on who is scheduled when. At
depth 16 (`@16`) it does a little. A copy in the background costs what it costs at the link's
speed; see copies.py.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from testbed.copyclient import BLOCK_BYTES, offset_of
from testbed.copyimage import make_image
from testbed.gauge.pair import Ask, Pair, pair
from testbed.hosts import usage

DATA_BYTES = 24 << 20
SEED = 1
DEPTH = 16
LARGE_BYTES = 64 << 10


def measure(work: Path) -> dict[str, Any]:
    """{kind of request: its cost}, and the memory of both servers afterwards, in KiB."""
    image = work / "source.img"
    make_image(image, DATA_BYTES, SEED)
    with pair(image, work) as servers:
        costs = Requests(servers).all()
        memory = {
            name: usage.memory_kib(server.process.pid)
            for name, server in (("target", servers.target), ("proxy", servers.proxy))
        }
    return {"costs": costs, "memory": memory}


class Requests:
    """The kinds of request, in the order in which they are measured."""

    def __init__(self, servers: Pair) -> None:
        self._servers = servers
        self._proxy = servers.proxy.connect()
        self._target = servers.target.connect()
        draw = random.Random(SEED)
        self._payload = draw.randbytes(BLOCK_BYTES)
        self._pieces = list(range(DATA_BYTES // LARGE_BYTES))  # nothing was asked of them yet
        draw.shuffle(self._pieces)
        self._costs: dict[str, dict[str, int]] = {}

    def all(self) -> dict[str, dict[str, int]]:
        """{kind of request: its cost}."""
        self._of("target_read", _each(self._read_target), self._blocks(480))
        fetched = self._blocks(240)
        self._of("miss", _each(self._read), fetched)
        self._of("large_miss", _each(self._read_large), self._large(100))
        written = self._blocks(240)
        self._of("absent_write", _each(self._write), written)
        self._of("partial_write", _each(self._write_a_part), self._blocks(160))
        self._of("present_read", _each(self._read), (fetched + written) * 2)
        self._of("present_write", _each(self._write), (fetched + written) * 2)
        self._of("present_read_16", self._read_deep, (fetched + written) * 3)
        self._servers.proxy.client.call("set", background="on")
        self._servers.proxy.client.call("wait", patience_s=None, timeout_s=600)
        self._of("complete_read", _each(self._read), (fetched + written) * 2)
        self._proxy.shutdown()
        self._target.shutdown()
        return self._costs

    def _blocks(self, count: int) -> list[int]:
        """Offsets of blocks that nobody asked for: eight of a piece, the next one elsewhere."""
        pieces = self._take(count // 8)
        found = [piece * LARGE_BYTES // BLOCK_BYTES + 2 * at for at in range(8) for piece in pieces]
        return [offset_of(block, DATA_BYTES) for block in found]

    def _large(self, count: int) -> list[int]:
        return [offset_of(piece, DATA_BYTES, LARGE_BYTES) for piece in self._take(count)]

    def _take(self, count: int) -> list[int]:
        taken, self._pieces = self._pieces[:count], self._pieces[count:]
        return taken

    def _of(self, name: str, ask: Ask, offsets: Sequence[int]) -> None:
        self._costs[name] = self._servers.cost(ask, offsets)
        print(f"requests: {name}", flush=True)

    def _read_target(self, offset: int) -> None:
        self._target.pread(BLOCK_BYTES, offset)

    def _read(self, offset: int) -> None:
        self._proxy.pread(BLOCK_BYTES, offset)

    def _read_large(self, offset: int) -> None:
        self._proxy.pread(LARGE_BYTES, offset)

    def _write(self, offset: int) -> None:
        self._proxy.pwrite(self._payload, offset)

    def _write_a_part(self, offset: int) -> None:
        self._proxy.pwrite(self._payload[: BLOCK_BYTES // 2], offset)

    def _read_deep(self, offsets: Sequence[int]) -> None:
        """Sixteen at a time."""
        import nbd

        buffer = nbd.Buffer(BLOCK_BYTES)
        for start in range(0, len(offsets), DEPTH):
            for offset in offsets[start : start + DEPTH]:
                self._proxy.aio_pread(buffer, offset)
            while self._proxy.aio_in_flight():
                self._proxy.poll(-1)


def _each(ask: Callable[[int], None]) -> Ask:
    """One after the other."""

    def all_of(offsets: Sequence[int]) -> None:
        for offset in offsets:
            ask(offset)

    return all_of
