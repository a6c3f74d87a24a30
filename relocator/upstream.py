"""The disk's upstream: the site it comes from, over a pool of connections.

Demand and background have connections of their own, so that a read the guest waits for never
queues behind background replies in a socket's buffer. What is asked for and not yet received is
all there is on the link: the copier bounds it (see pacing.py).
"""

import threading
import time
from collections.abc import Callable

from relocator.connection import Connection, Request, open_handle
from relocator.errors import UpstreamError

Done = Callable[[Request], None]


def probe_size(uri: str) -> int:
    """Size of the disk behind `uri` in bytes, by a connection of its own, closed again.

    Raises:
        UpstreamError: the source can't be reached.
    """
    handle = open_handle(uri)
    size = int(handle.get_size())
    handle.shutdown()
    return size


class Upstream:
    """Reads from the source. Replies arrive on the connections' threads."""

    def __init__(self, uri: str, retry_timeout_s: float) -> None:
        self.uri = uri
        self.retry_timeout_s = retry_timeout_s
        self._demand = Connection(uri, "upstream-demand")
        self._background = Connection(uri, "upstream-background")

    def start(self) -> None:
        """Connect, in the background."""
        self._demand.start()
        self._background.start()

    @property
    def connected(self) -> bool:
        """Whether a read would be sent at once."""
        return self._demand.connected and self._background.connected

    @property
    def received_bytes(self) -> int:
        """Payload received so far."""
        return self._demand.received_bytes + self._background.received_bytes

    def fetch(self, offset: int, length: int, done: Done, *, background: bool) -> None:
        """Read `length` bytes at `offset`; `done` gets them, or the error.

        A demand read fails once the source has been lost for the retry timeout; a background read
        waits for it as long as it takes.
        """
        if background:
            self._background.submit(Request("read", offset, length, done))
        else:
            deadline_s = time.monotonic() + self.retry_timeout_s
            self._demand.submit(Request("read", offset, length, done, deadline_s))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Read through, keeping nothing.

        Raises:
            UpstreamError: the source failed it or is lost.
        """
        arrived = threading.Event()
        answer: list[Request] = []

        def done(request: Request) -> None:
            answer.append(request)
            arrived.set()

        self.fetch(offset, len(buffer), done, background=False)
        arrived.wait()
        if answer[0].error is not None:
            raise answer[0].error
        buffer[:] = answer[0].data

    def block_status(self, offset: int, length: int, done: Done) -> None:
        """Ask which parts are holes; a source that can't tell answers 'all data'."""
        self._background.submit(Request("block status", offset, length, done))

    def close(self) -> None:
        """Disconnect; whatever waits fails. Must not be called from a `done`."""
        self._demand.close()
        self._background.close()


__all__ = ["Done", "Request", "Upstream", "UpstreamError", "probe_size"]
