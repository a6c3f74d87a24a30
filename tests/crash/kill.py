"""kill -9, again and again: no acknowledged write is lost and no stale block is shown.

    python -m tests.crash.kill [--rounds N] [--seed N]

A round: the proxy is started on the store that the last one left, clients write, read and flush
while the background copy runs, and it is killed at a random moment, sometimes before it is up, now
and then with its source. After each restart every client reads back all that it has written. When
a copy is complete the whole image is compared, and the next begins with an empty store. Every other
copy is one of a relocator, and takes blocks from a seed, a part of which is outdated.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import nbd

from tests.crash.clients import Client, Ledger, regions
from tests.support.servers import PLUGIN, status_or_none, wait_for
from tests.support.servers import Server as Proxy
from tests.support.stamps import make_seed, make_source

SIZE_BYTES = 8 << 20
SECTORS = SIZE_BYTES // 512
CLIENTS = 2
PATIENCE_S = 120.0


def start(directory: Path, name: str, keys: list[str]) -> Proxy:
    """An nbdkit on a Unix socket, not waited for."""
    socket, log = directory / f"{name}.sock", directory / f"{name}.log"
    socket.unlink(missing_ok=True)
    with log.open("ab") as output:
        argv = ["nbdkit", "-f", "-U", str(socket), *keys]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    return Proxy(process, socket, directory / f"{name}.control", log)


class Worker:
    """A client that works on a thread of its own until it is told to stop."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        seen = 0
        try:
            while not self._stopping.is_set():
                self.client.step()
                if self.client.reconnected != seen:
                    seen = self.client.reconnected
                    self.client.check_written()
        except BaseException as error:
            self.failure = error

    def stop(self) -> None:
        """Let it finish its request; raises what it failed with."""
        self._stopping.set()
        self._thread.join(PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        assert not self._thread.is_alive(), f"a request has no answer after {PATIENCE_S:.0f} s"


class Copy:
    """One store, from empty to complete, through as many kills as that takes.

    `seeded`: what it is a copy of is a relocator, and there is an image that holds most of it.
    """

    def __init__(self, directory: Path, seed: int, *, seeded: bool) -> None:
        self.directory = directory
        self.seeded = seeded
        self.random = random.Random(seed)
        directory.mkdir()
        make_source(directory / "source.img", SECTORS)
        make_seed(directory / "seed.img", SECTORS)
        self.source = self._source()
        self.proxy = self._proxy()
        self.workers: list[Worker] = []
        self.seeded_bytes = 0  # as far as was seen
        self.seed = seed

    def _source(self) -> Proxy:
        image, store = self.directory / "source.img", self.directory / "maps"
        keys = ["-t", "1", "file", str(image)]
        if self.seeded:
            keys = ["-t", "1", "python", str(PLUGIN), f"disk={image}", f"store={store}"]
        source = start(self.directory, "source", keys)
        wait_for(source.socket.exists, "the source", PATIENCE_S)
        return source

    def _proxy(self) -> Proxy:
        source = f"nbd+unix:///?socket={self.directory / 'source.sock'}"
        keys = [f"store={self.directory / 'store'}", f"source={source}", "rate=16M"]
        if self.seeded:
            keys += [f"seed={self.directory / 'seed.img'}", "seed-rate=400M"]
        control = f"control={self.directory / 'proxy.control'}"
        return start(self.directory, "proxy", ["python", str(PLUGIN), *keys, control])

    def connect(self) -> Any:
        """A client's handle."""
        handle = nbd.NBD()
        handle.connect_unix(str(self.directory / "proxy.sock"))
        return handle

    def begin(self) -> None:
        """Start the clients, once there is a proxy."""
        self.await_proxy()
        ledger = Ledger(lambda _name: None)
        self.workers = [
            Worker(Client(self.connect, ledger, *region, seed=self.seed * 10 + at))
            for at, region in enumerate(regions(SECTORS, CLIENTS))
        ]

    def await_proxy(self) -> None:
        """Wait until the proxy takes clients."""

        def up() -> bool:
            if self.proxy.process.poll() is not None:
                raise AssertionError(f"the proxy ended: {self.proxy.log.read_text()[-2000:]}")
            with suppress(nbd.Error):
                self.connect().shutdown()
                return True
            return False

        wait_for(up, "the proxy", PATIENCE_S)

    def round(self) -> bool:
        """Work, kill, restart; whether the copy was seen complete."""
        early = self.random.random() < 0.2
        if not early:
            self.await_proxy()
        time.sleep(self.random.uniform(0.0, 0.5))
        for worker in self.workers:
            if worker.failure is not None:
                raise worker.failure
        status = None if early else status_or_none(self.proxy.control)
        self.seeded_bytes += 0 if status is None else status["seeded_bytes"]
        with_source = self.random.random() < 0.1
        self.proxy.kill()
        if with_source:
            self.source.kill()
            self.source = self._source()
        self.proxy = self._proxy()
        return status is not None and status["state"] == "complete"

    def finish(self) -> int:
        """Complete the copy and compare all of it; returns the requests that were made."""
        self.await_proxy()
        for worker in self.workers:
            worker.stop()
        self.proxy.hurry()
        self.seeded_bytes += self.proxy.wait(PATIENCE_S)["seeded_bytes"]
        for worker in self.workers:
            worker.client.check_all()
            worker.client.close()
        self.proxy.stop()
        expected = b"".join(worker.client.expected() for worker in self.workers)
        assert (self.directory / "store" / "disk.img").read_bytes() == expected
        return sum(worker.client.requests for worker in self.workers)

    def end(self) -> None:
        """End what still runs."""
        for worker in self.workers:
            with suppress(BaseException):
                worker.stop()
        self.proxy.kill()
        self.source.kill()


def soak(
    directory: Path, rounds: int, seed: int, tell: Callable[[str], None] = lambda _line: None
) -> tuple[int, int, int]:
    """Kill the proxy `rounds` times.

    Returns how many copies and how many requests that took, and the bytes taken from seeds.
    """
    done, copies, requests, seeded_bytes = 0, 0, 0, 0
    while done < rounds:
        with ExitStack() as stack:
            number = seed * 10_000 + copies
            copy = Copy(directory / f"copy-{copies}", number, seeded=copies % 2 == 0)
            stack.callback(copy.end)
            copy.begin()
            over = False
            while not over and done < rounds:
                over = copy.round()
                done += 1
            requests += copy.finish()
            seeded_bytes += copy.seeded_bytes
        for name in ("source.img", "seed.img", "store/disk.img"):
            (copy.directory / name).unlink()
        copies += 1
        tell(f"{done} of {rounds} rounds, {copies} copies, {requests} requests: nothing lost")
    return copies, requests, seeded_bytes


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.kill", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=1000, help="(1000)")
    parser.add_argument("--seed", type=int, default=1, help="of moments and requests (1)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="relocator-kill-") as directory:
        soak(Path(directory), given.rounds, given.seed, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
