"""Servers that a proxy may have as its source, each startable again on the same address."""

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.model import source_bytes
from tests.support.servers import wait_for

READY_S = 20.0
SIZE_BYTES = 8 << 20


def image(directory: Path) -> Path:
    """A disk image of `SIZE_BYTES` of source data."""
    path = directory / "disk.img"
    path.write_bytes(source_bytes(SIZE_BYTES))
    return path


def sparse(data: bytes, path: Path) -> Path:
    """Write `data` with holes where it is zero."""
    with path.open("wb") as disk:
        disk.truncate(len(data))
        for at in range(0, len(data), 4096):
            if any(data[at : at + 4096]):
                disk.seek(at)
                disk.write(data[at : at + 4096])
    return path


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Daemon:
    """A command that serves `port` of 127.0.0.1; may be killed and started again."""

    def __init__(self, directory: Path, name: str, port: int, argv: list[str]) -> None:
        self.port = port
        self._argv = argv
        self.log = directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        give_up_s = time.monotonic() + READY_S
        while time.monotonic() < give_up_s:
            if self._process.poll() is not None:
                break
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"{' '.join(self._argv)} is not up: {self.log.read_text()[-2000:]}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; once it is to stop, wait until all of it has."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGSTOP:
            wait_for(self._stands_still, "the server to stand still")

    def _stands_still(self) -> bool:
        assert self._process is not None
        stats = Path(f"/proc/{self._process.pid}/task").glob("*/stat")
        return all(one.read_text().rpartition(")")[2].split()[0] == "T" for one in stats)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextmanager
def daemon(directory: Path, name: str, argv: Callable[[int], list[str]]) -> Iterator[Daemon]:
    """`argv(port)` on a free port; killed at the end of the block."""
    port = free_port()
    server = Daemon(directory, name, port, argv(port))
    try:
        yield server
    finally:
        server.kill()


class Relay:
    """A TCP relay to a port, or a Unix socket, that counts what passes, both ways together.

    It can cut a connection in the middle of a reply.
    """

    def __init__(self, to: int | Path) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.cut_after_bytes: int | None = None
        self.cuts = 0
        self.passed_bytes = 0
        self._count = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections, and end those there are."""
        self._listener.close()
        for pair in self._pairs:
            _end(pair)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Both directions of a connection, until both have ended."""
        with client, suppress(OSError), self._connect() as server:
            self._pairs.append((client, server))
            back = threading.Thread(target=self._pass, args=(server, client), daemon=True)
            back.start()
            self._pass(client, server)
            back.join()

    def _connect(self) -> socket.socket:
        if isinstance(self._to, int):
            return socket.create_connection(("127.0.0.1", self._to))
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self._to))
        return server

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        with suppress(OSError):  # cut by the other direction
            while data := source.recv(10_007):
                passed += len(data)
                with self._count:
                    self.passed_bytes += len(data)
                if self.cut_after_bytes is not None and passed > self.cut_after_bytes:
                    sink.sendall(data[: len(data) // 2])
                    self.cuts += 1
                    break
                sink.sendall(data)
        _end((source, sink))


def _end(pair: tuple[socket.socket, socket.socket]) -> None:
    for end in pair:
        with suppress(OSError):  # the other thread was first
            end.shutdown(socket.SHUT_RDWR)
