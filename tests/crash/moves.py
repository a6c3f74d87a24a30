"""kill -9 in rounds and at the switch: a disk that moves again and again holds what was written.

    python -m tests.crash.moves [--moves N] [--seed N]

A move: clients write at the source while a proxy copies ahead and keeps in step. Proxy, source or
both are killed at random moments. Then the clients stop, as a VM does, and the disk is taken over,
until that has come to its end: at first someone is killed while the seal's answer, with the blocks
that it brings, is being taken over, then now and then at random. The clients go on at the proxy,
where each reads back what it wrote at either site, and someone is killed a few more times. In the
end all is compared. The source sends slowly, so that there is a middle to be killed in.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbd

from relocator.errors import RelocatorError
from tests.crash.clients import Client, Ledger, regions
from tests.crash.kill import PATIENCE_S, Worker, start
from tests.support.servers import PLUGIN, Server, status_or_none, wait_for
from tests.support.stamps import make_source

SIZE_BYTES = 4 << 20
SECTORS = SIZE_BYTES // 512
BLOCK = 4096
CLIENTS = 2
#: what comes with the seal at most, and how fast the source sends it over a connection
BRINGS_BYTES, BITS_PER_S, SLOW_BITS_PER_S = 1 << 20, 32_000_000, 2_000_000
#: at least so much is to come with it
LEFT_BLOCKS = 150


class Move:
    """One disk, from its source to a proxy that is complete. `hits`: what was killed when."""

    def __init__(self, directory: Path, seed: int) -> None:
        directory.mkdir()
        self._directory = directory
        self._random = random.Random(seed)
        self.hits: Counter[str] = Counter()
        make_source(directory / "disk.img", SECTORS)
        self._site = "source"
        self._servers: dict[str, Server] = {}
        for site in ("source", "proxy"):
            self._servers[site] = self._start(site)
            self._await(site)
        ledger = Ledger(lambda _name: None)
        self._clients = [
            Client(self._connect, ledger, *region, seed=seed * 10 + at)
            for at, region in enumerate(regions(SECTORS, CLIENTS))
        ]
        self._workers: list[Worker] = []

    def _start(self, site: str) -> Server:
        there = self._directory
        keys = [str(PLUGIN), f"control={there / f'{site}.control'}"]
        if site == "source":
            rate = [f"connection-rate={BITS_PER_S}", f"connection-rate-file={there / 'rate'}"]
            keys += [f"disk={there / 'disk.img'}", f"store={there / 'maps'}", *rate]
            return start(there, site, ["-t", "1", "--filter=rate", "python", *keys])
        keys += [f"store={there / 'store'}", f"source={self._uri('source')}", "mode=standby"]
        keys += ["refresh=0.1", f"seal-brings={BRINGS_BYTES}"]
        return start(there, site, ["python", *keys])

    def _uri(self, site: str) -> str:
        return f"nbd+unix:///?socket={self._directory / f'{site}.sock'}"

    def _connect(self) -> Any:
        handle = nbd.NBD()
        handle.connect_uri(self._uri(self._site))
        return handle

    @property
    def _proxy(self) -> Server:
        return self._servers["proxy"]

    def _await(self, site: str) -> None:
        def up() -> bool:
            server = self._servers[site]
            if server.process.poll() is not None:
                raise AssertionError(f"{site} ended: {server.log.read_text()[-2000:]}")
            return status_or_none(server.control) is not None

        wait_for(up, f"the {site}", PATIENCE_S)

    def _kill(self, *sites: str) -> None:
        """kill -9, and start again."""
        for site in sites:
            self._servers[site].kill()
        for site in sites:
            self._servers[site] = self._start(site)
            self._await(site)
        for worker in self._workers:
            if worker.failure is not None:
                raise worker.failure

    def _kill_someone(self) -> None:
        choice = self._random.choice((("proxy",), ("proxy",), ("source",), ("source", "proxy")))
        self._kill(*choice)

    def _work(self) -> None:
        self._workers = [Worker(client) for client in self._clients]

    def _rest(self) -> None:
        """The clients finish what they do, and are gone."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.stop()
            worker.client.close()

    def run(self, kills: int) -> int:
        """All of it; how many requests were made."""
        self._work()
        for number in range(kills):
            if number % 2 == 0:
                wait_for(lambda: self._proxy.status()["rounds"], "a round", PATIENCE_S)
            time.sleep(self._random.uniform(0.0, 0.5))
            self.hits["rounds"] += self._proxy.status()["rounds"] > 0
            self._kill_someone()
        self._switch(kills)
        self._site = "proxy"
        self._work()
        for _ in range(kills):
            time.sleep(self._random.uniform(0.0, 0.3))
            self._kill_someone()
        return self._finish()

    def _switch(self, kills: int) -> None:
        """Take the disk over, however often someone is killed meanwhile."""
        wait_for(lambda: self._proxy.status()["rounds"], "a round", PATIENCE_S)
        self._proxy.control.call("set", refresh="off")
        dirty = lambda: self._servers["source"].status()["dirty_blocks"]  # noqa: E731
        wait_for(lambda: dirty() > LEFT_BLOCKS, "what is left to the seal", PATIENCE_S)
        self._rest()
        rate = self._directory / "rate"
        rate.write_text(str(SLOW_BITS_PER_S))
        for number in range(kills):
            with suppress(RelocatorError):  # it has no connection to the source yet
                self._proxy.control.call("activate")
            if number == 0:
                wait_for(self._has_come, "what comes", PATIENCE_S)
                rate.write_text(str(BITS_PER_S))
            else:
                time.sleep(self._random.uniform(0.0, 0.3))
            status = self._proxy.status()
            wanted = min(BRINGS_BYTES, status["dropped_blocks"] * BLOCK)
            self.hits["seal"] += status["state"] == "activating"
            self.hits["brought"] += 0 < status["brought_bytes"] < wanted
            self._kill_someone()
        self._proxy.control.call("activate")

    def _has_come(self) -> bool:
        """Whether blocks came with the seal, or all is here: a last round may have taken them."""
        status = self._proxy.status()
        return status["brought_bytes"] > 0 or status["state"] == "complete"

    def _finish(self) -> int:
        self._await("proxy")
        self._rest()
        self._proxy.wait(PATIENCE_S)
        for client in self._clients:
            client.check_all()
            client.close()
        self._proxy.stop()
        expected = b"".join(client.expected() for client in self._clients)
        assert (self._directory / "store" / "disk.img").read_bytes() == expected
        return sum(client.requests for client in self._clients)

    def end(self) -> None:
        """End what still runs."""
        for worker in self._workers:
            with suppress(BaseException):
                worker.stop()
        for server in self._servers.values():
            server.kill()


def soak(
    directory: Path,
    moves: int,
    kills: int,
    seed: int,
    tell: Callable[[str], None] = lambda _line: None,
) -> Counter[str]:
    """So many moves, with so many kills in each of their three parts.

    Returns how many requests were made, and how many kills there were in rounds, while the seal was
    asked for, and while its blocks came.
    """
    seen: Counter[str] = Counter()
    for number in range(moves):
        move = Move(directory / f"move-{number}", seed * 10_000 + number)
        try:
            seen["requests"] += move.run(kills)
        finally:
            move.end()
        seen += move.hits
        tell(f"{number + 1} of {moves} moves: {dict(seen)}: nothing lost")
    return seen


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.moves", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--moves", type=int, default=100, help="(100)")
    parser.add_argument("--seed", type=int, default=1, help="of moments and requests (1)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="relocator-moves-") as directory:
        soak(Path(directory), given.moves, 3, given.seed, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
