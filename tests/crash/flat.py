"""One proxy and one target that live long, while all sorts of things happen: do they stay as small?

    python -m tests.crash.flat [--time S] [--seed N]

The proxy stands by and keeps in step with a source that is written all the time. Meanwhile clients
come and go at both, the source is killed and started again, the disk is taken over and given back,
verbs are refused, and there are control clients that leave in the middle. Memory (RSS), threads and
open files of the proxy are noted; of the last third none may have grown over the middle one. The
content is compared at the end.
"""

import argparse
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import nbd

from relocator.errors import RelocatorError
from tests.support.model import source_bytes
from tests.support.servers import PLUGIN, Server, proxy, wait_for

SIZE_BYTES = 8 << 20
PATIENCE_S = 120.0
#: what a process may waver by, in bytes: the interpreter's own heap does
SLACK_BYTES = 6 << 20


class Size(NamedTuple):
    """How much a process uses: bytes, threads, open files."""

    memory_bytes: int
    threads: int
    files: int

    @classmethod
    def of(cls, pid: int) -> "Size":
        """Of the process with that id."""
        text = Path(f"/proc/{pid}/status").read_text()
        found = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return cls(int(found["VmRSS"].split()[0]) << 10, int(found["Threads"]), files)


class World:
    """A target that may be killed, and `copy`, the proxy that is watched."""

    copy: Server

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.random = random.Random(seed)
        self.model = source_bytes(SIZE_BYTES)
        self.source: subprocess.Popen[bytes] | None = None
        self.acts: dict[Callable[[], None], int] = {
            self.write_there: 8,
            self.read_here: 8,
            self.ask: 8,
            self.leave_in_the_middle: 4,
            self.refuse: 4,
            self.take_over_and_give_back: 2,
            self.kill_the_source: 1,
        }

    def connect(self, name: str) -> Any:
        """A client of one of the two."""
        handle = nbd.NBD()
        handle.connect_unix(str(self.directory / f"{name}.sock"))
        return handle

    def start_source(self) -> None:
        """Start the target, and wait for it."""
        path, ready = self.directory / "target.sock", self.directory / "target.pid"
        for left in (path, ready):
            left.unlink(missing_ok=True)
        keys = [f"disk={self.directory / 'disk.img'}", f"store={self.directory / 'maps'}"]
        server = ["nbdkit", "-f", "-t", "1", "-U", str(path), "-P", str(ready)]
        command = [*server, "python", str(PLUGIN), *keys]
        self.source = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_for(ready.exists, "the source", PATIENCE_S)  # the socket is there before it listens

    def kill_the_source(self) -> None:
        """It comes back after a moment."""
        if self.source is not None:
            self.source.kill()
            self.source.wait()
        time.sleep(self.random.uniform(0, 1))
        self.start_source()

    def _place(self) -> tuple[int, int]:
        at = self.random.randrange(SIZE_BYTES - (64 << 10)) & -512
        return at, self.random.randrange(1, 128) * 512

    def write_there(self) -> None:
        """The guest runs at the source."""
        at, length = self._place()
        data = self.random.randbytes(length)
        handle = self.connect("target")
        with suppress(nbd.Error):  # sealed, for a moment after the disk was given back
            handle.pwrite(data, at)
            handle.flush()
            self.model[at : at + length] = data
        handle.shutdown()

    def read_here(self) -> None:
        """Reads pass through."""
        at, length = self._place()
        handle = self.connect("proxy")
        assert handle.pread(length, at) == self.model[at : at + length]
        handle.shutdown()

    def ask(self) -> None:
        """What an operator and a monitor ask all the time."""
        self.copy.control.call("status")
        self.copy.control.call("map", cells=100)
        self.copy.control.call("set", rate=self.random.choice(["none", "80M"]))

    def leave_in_the_middle(self) -> None:
        """Control clients that don't wait for their answer, or never ask."""
        for line in (b'{"verb": "status"}\n' * 20, b'{"verb', b""):
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(self.copy.control_path))
                link.sendall(line)

    def refuse(self) -> None:
        """What isn't so."""
        for verb in ("explode", "release", "unseal"):
            with suppress(RelocatorError):
                self.copy.control.call(verb)

    def take_over_and_give_back(self) -> None:
        """The VM was to come, and didn't."""
        with suppress(RelocatorError):
            self.copy.control.call("activate", hold=True)
        with suppress(RelocatorError):
            self.copy.control.call("withdraw")
        wait_for(lambda: self.copy.status()["state"] == "standby", "standby", PATIENCE_S)

    def act(self) -> None:
        """Something happens."""
        (act,) = self.random.choices([*self.acts], weights=[*self.acts.values()])
        act()

    def finish(self) -> None:
        """The disk moves at last, whole."""
        self.copy.control.call("activate", wait=True)
        self.copy.wait(PATIENCE_S)
        handle = self.connect("proxy")
        assert handle.pread(SIZE_BYTES, 0) == self.model
        handle.shutdown()


def run(
    directory: Path, time_s: float, seed: int, tell: Callable[[str], None] = lambda _line: None
) -> list[Size]:
    """Let things happen for so long; how large the proxy was all along."""
    (directory / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    uri = f"nbd+unix:///?socket={directory / 'target.sock'}"
    world = World(directory, seed)
    world.start_source()
    try:
        keys = ("mode=standby", "refresh=0.2", "retry-timeout=20")
        with proxy(directory, uri, *keys) as world.copy:
            began_s = told_s = time.monotonic()
            sizes: list[Size] = []
            while (now_s := time.monotonic()) < began_s + time_s:
                world.act()
                sizes.append(Size.of(world.copy.process.pid))
                if now_s - told_s > 10:
                    told_s = now_s
                    size, left_s = sizes[-1], began_s + time_s - now_s
                    what = f"{size.memory_bytes >> 10} KiB, {size.threads} threads, {size.files}"
                    tell(f"{len(sizes)} acts: {what} files; {left_s:.0f} s left")
            world.finish()
            return sizes
    finally:
        if world.source is not None:
            world.source.kill()
            world.source.wait()


def check(sizes: list[Size]) -> str:
    """What the thirds were; an assertion if the last has grown."""
    third = len(sizes) // 3
    middle, last = sizes[third : 2 * third], sizes[2 * third :]
    said = []
    for name, slack in (("memory_bytes", SLACK_BYTES), ("threads", 2), ("files", 2)):
        before, after = (median(getattr(one, name) for one in part) for part in (middle, last))
        said.append(f"{name} {before:.0f}, then {after:.0f}")
        assert after <= before + slack, f"{name} has grown from {before} to {after}"
    return "; ".join(said)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.flat", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--time", type=float, default=3600.0, help="seconds (3600)")
    parser.add_argument("--seed", type=int, default=1, help="(1)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="relocator-flat-") as directory:
        sizes = run(Path(directory), given.time, given.seed, lambda line: print(line, flush=True))
    print(f"{len(sizes)} acts, flat: {check(sizes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
