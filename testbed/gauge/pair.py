"""A target and a proxy on one host, over Unix sockets: a source without a link before it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relocator.client import Client
from testbed.hosts import services, usage
from testbed.hosts.supervise import Process, Supervisor

GRID_S = 0.1
WARM_UP = 40
#: sends requests for these offsets and waits for the answers
Ask = Callable[[Sequence[int]], None]


@dataclass(frozen=True, slots=True)
class Server:
    """One of ours, and how to reach it."""

    process: Process
    socket: Path
    client: Client

    def connect(self) -> Any:
        """A libnbd handle of its own."""
        import nbd

        handle = nbd.NBD()
        handle.connect_unix(str(self.socket))
        return handle


@dataclass(frozen=True, slots=True)
class Pair:
    """The servers, and what their requests cost."""

    target: Server
    proxy: Server

    def processor_ns(self) -> tuple[int, int]:
        """Of the target and of the proxy, so far."""
        pids = self.target.process.pid, self.proxy.process.pid
        return usage.processor_ns(pids[0]), usage.processor_ns(pids[1])

    def cost(self, ask: Ask, offsets: Sequence[int]) -> dict[str, int]:
        """What it costs either server to be asked at all the offsets; the first ones warm up."""
        ask(offsets[:WARM_UP])
        to_the_grid()
        before = self.processor_ns()
        ask(offsets[WARM_UP:])
        after = self.processor_ns()
        return {
            "count": len(offsets) - WARM_UP,
            "target_ns": after[0] - before[0],
            "proxy_ns": after[1] - before[1],
        }


def to_the_grid() -> None:
    """Wait for the next full tenth of a second."""
    time.sleep(GRID_S - time.monotonic() % GRID_S)


@contextmanager
def pair(image: Path, work: Path) -> Iterator[Pair]:
    """Both servers, of an image, until the block ends; nothing is fetched that nobody asks for."""
    with Supervisor(work) as supervisor:
        target = _start(supervisor, work, "target", services.TARGET_THREADS, f"disk={image}")
        source = f"source=nbd+unix:///?socket={target.socket}"
        keys = (f"store={work / 'store'}", source, "background=off", "readahead=0")
        proxy = _start(supervisor, work, "proxy", services.PROXY_THREADS, *keys)
        yield Pair(target, proxy)


def _start(supervisor: Supervisor, work: Path, name: str, threads: int, *keys: str) -> Server:
    socket, control = work / f"{name}.nbd", work / f"{name}.sock"
    argv = ["nbdkit", "-f", "-t", str(threads), "-U", str(socket)]
    argv += ["python", str(services.PLUGIN), *keys, f"control={control}"]
    process = supervisor.start(name, argv)
    process.wait_until(lambda: socket.exists() and control.exists(), f"{name}'s sockets")
    return Server(process, socket, Client(control))
