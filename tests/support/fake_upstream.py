"""An upstream whose replies come when, and as, the test says: for races no server can stage."""

import errno
from collections.abc import Callable

from relocator.errors import UpstreamError
from relocator.source.upstream import Done, Request


class FakeUpstream:
    """Holds requests back until `reply` or `fail` is called on them, in any order."""

    uri = "fake:"
    connected = True
    is_background_silent = False
    retry_timeout_s = 5.0

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.waiting: list[Request] = []
        self.fetched: list[tuple[int, int]] = []
        self.background: list[bool] = []

    def fetch(
        self,
        offset: int,
        length: int,
        done: Done,
        *,
        background: bool,
        stuck: Callable[[], None] = lambda: None,
    ) -> None:
        self.fetched.append((offset, length))
        self.background.append(background)
        self.waiting.append(Request("read", offset, length, done, stuck=stuck))

    def block_status(self, offset: int, length: int, done: Done) -> None:
        self.waiting.append(Request("block status", offset, length, done))

    def reply_runs(self, *runs: tuple[int, int], index: int = 0) -> None:
        """Answer the block status query at `index` with `(length, flags)` in bytes."""
        request = self.waiting.pop(index)
        request.runs = list(runs)
        request.done(request)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)]

    def reply(self, index: int = 0) -> None:
        """Deliver the data of the request at `index`."""
        request = self.waiting.pop(index)
        request.data = bytearray(self._data[request.offset : request.offset + request.length])
        request.done(request)

    def fail(self, index: int = 0) -> None:
        """Let the request at `index` fail."""
        request = self.waiting.pop(index)
        request.error = UpstreamError("made to fail", errno.EIO)
        request.done(request)
