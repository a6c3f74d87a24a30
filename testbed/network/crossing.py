"""Lets a program of the kernel's own network namespace speak through a site: TCP, passed on.

    python -m testbed.network.crossing PID:ADDRESS:PORT=PID:ADDRESS:PORT ...

Each argument is a way: what connects to the first address, in the network namespace of the first
process, is connected to the second, in that of the second. The kernel's replication (DRBD) opens
its connections in the first namespace only, whoever asks for them.
"""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.hosts.supervise import in_namespace

PIECE_BYTES = 256 << 10
PATIENCE_S = 5.0


@dataclass(frozen=True)
class End:
    """An address in the network namespace of a process."""

    pid: int
    address: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "End":
        """`PID:ADDRESS:PORT`."""
        pid, address, port = text.split(":")
        return cls(int(pid), address, int(port))

    def __str__(self) -> str:
        return f"{self.pid}:{self.address}:{self.port}"


@dataclass(frozen=True)
class Way:
    """From where connections come, and where they lead."""

    enter: End
    leave: End

    @classmethod
    def parse(cls, text: str) -> "Way":
        """`PID:ADDRESS:PORT=PID:ADDRESS:PORT`."""
        enter, _, leave = text.partition("=")
        return cls(End.parse(enter), End.parse(leave))

    def __str__(self) -> str:
        return f"{self.enter}={self.leave}"

    def listen(self) -> socket.socket:
        """Listens where it begins."""

        def make() -> socket.socket:
            return socket.create_server((self.enter.address, self.enter.port))

        return in_namespace(self.enter.pid, make)

    def connect(self) -> socket.socket:
        """Connects to where it ends, once somebody listens there."""

        def make() -> socket.socket:
            give_up_s = time.monotonic() + PATIENCE_S
            while True:
                try:
                    return socket.create_connection((self.leave.address, self.leave.port))
                except ConnectionRefusedError:
                    if time.monotonic() > give_up_s:
                        raise
                    time.sleep(0.02)

        return in_namespace(self.leave.pid, make)

    def serve(self, door: socket.socket) -> None:
        """Passes every connection on, for ever; one that leads nowhere is hung up."""
        while True:
            come, _ = door.accept()
            try:
                gone = self.connect()
            except OSError:
                come.close()
                continue
            for one in (come, gone):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for pair in ((come, gone), (gone, come)):
                threading.Thread(target=_pass_on, args=pair, daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    """One direction, until either end hangs up."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            sink.sendall(buffer[:count])
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def main(arguments: Sequence[str]) -> None:
    """Serves all ways until it is ended."""
    ways = [Way.parse(text) for text in arguments]
    doors = [way.listen() for way in ways]
    threads = [
        threading.Thread(target=way.serve, args=(door,))
        for way, door in zip(ways, doors, strict=True)
    ]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main(sys.argv[1:])
