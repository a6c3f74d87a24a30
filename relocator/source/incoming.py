"""An export that is read front to back, its requests pipelined: an answer that comes in.

What is asked for at once takes one round trip however long it is, and what has come can be used
while the remainder is still on its way. Used by one thread at a time.
"""

import errno
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import nbd

from relocator.errors import RelocatorError, UpstreamError
from relocator.jobs import start
from relocator.source.handles import CONNECT_S, aio_pread, hang_up, hear_out, progress
from relocator.source.replies import AT_ONCE_BYTES, FIRST_READ_BYTES
from relocator.store.geometry import Extent

PIECE_BYTES = 64 << 10
_LOOK_EVERY_S = 0.25


class Incoming:
    """The content of the export behind `handle`, of which its line is asked for at once.

    With `more`, AT_ONCE_BYTES are.
    """

    def __init__(self, handle: Any, *, more: bool = False) -> None:
        self._handle = handle
        self._size = int(handle.get_size())
        self._asked = 0
        self._flights: deque[tuple[bytearray, list[int]]] = deque()
        self._data = bytearray()
        self._failure: UpstreamError | None = None  # nothing more is read after it
        self.ask(FIRST_READ_BYTES)
        if more:
            self.ask(AT_ONCE_BYTES)

    def ask(self, end: int) -> None:
        """Ask for all up to `end` that was not asked for yet; errors as `read`, which waits."""
        while self._asked < min(end, self._size):
            length = min(PIECE_BYTES, min(end, self._size) - self._asked)
            buffer, outcome = bytearray(length), list[int]()
            self._flights.append((buffer, outcome))
            place = Extent(self._asked, length)
            self._asked += length
            try:
                aio_pread(self._handle, buffer, place, place.offset, _notes(outcome))
            except nbd.Error as error:
                raise UpstreamError(error.string, error.errnum or errno.EIO) from error

    def read(
        self,
        offset: int,
        length: int,
        timeout_s: float = CONNECT_S,
        idle: Callable[[], None] | None = None,
    ) -> bytes:
        """The bytes at `offset`; fewer at the export's end.

        `idle` is called now and then while waiting; what it raises ends the attempt.

        Raises:
            UpstreamError: the source fails, or nothing has arrived for `timeout_s`; now or before.
        """
        if self._failure is None:
            try:
                self._await(min(offset + length, self._size), timeout_s, idle)
            except UpstreamError as error:
                self._failure = error
        if self._failure is not None:
            raise self._failure
        return bytes(self._data[offset : offset + length])

    def _await(self, end: int, timeout_s: float, idle: Callable[[], None] | None) -> None:
        self.ask(end)
        heard_s = time.monotonic()
        while len(self._data) < end:
            if self._gather():
                heard_s = time.monotonic()
                continue
            left_s = heard_s + timeout_s - time.monotonic()
            if left_s <= 0:
                raise UpstreamError(f"no answer within {timeout_s:g} s", errno.ETIMEDOUT)
            try:
                progress(self._handle, min(left_s, _LOOK_EVERY_S))
            except nbd.Error as error:
                raise UpstreamError(error.string, error.errnum or errno.EIO) from error
            if idle is not None:
                idle()

    def end(self, idle: Callable[[], None] | None = None) -> None:
        """Let come what was asked for, so that nothing is owed, and hang up.

        To hang up on a server that still owes several answers is hard on nbdkit before 1.34. And a
        socket that is closed with something unread is reset, and a reset that the link loses is not
        sent again: the source's server would wait for this client, and never end. So what `idle`
        raises leaves it a moment (see `hear_out`); only who was silent for long is not waited for.
        """
        if self._handle is None:
            return
        with suppress(RelocatorError):
            if self._failure is None:
                self._await(self._asked, CONNECT_S, idle)
        with suppress(nbd.Error):
            (hang_up if self._is_silent else hear_out)(self._handle)
        self._handle = None
        self._flights.clear()
        self._data = bytearray()

    @property
    def _is_silent(self) -> bool:
        return self._failure is not None and self._failure.errno == errno.ETIMEDOUT

    def _gather(self) -> bool:
        """Append what has arrived next, if it has."""
        if not self._flights or not self._flights[0][1]:
            return False
        buffer, (error,) = self._flights.popleft()
        if error:
            raise UpstreamError(f"the source failed a read: {os.strerror(error)}", error)
        self._data += buffer
        return True


def end_later(those: Iterable[Incoming]) -> None:
    """End them while nobody waits for that."""
    for one in those:
        start("farewell", one.end)


def is_quiet(handle: Any) -> bool:
    """Whether nothing was heard over a handle that is owed nothing: not even that it is over."""
    poller = select.poll()
    try:
        poller.register(handle.aio_get_fd(), select.POLLIN)
    except nbd.Error:
        return False
    return not poller.poll(0)


def _notes(outcome: list[int]) -> Callable[[Any], int]:
    def completed(error: Any) -> int:
        outcome.append(error.value)
        return 1

    return completed
