"""One NBD connection to the source: one libnbd handle, owned by one thread.

Other threads hand requests over through a queue and an eventfd; replies are delivered on the
connection's thread through each request's `done`. The handle is never touched from outside, so it
needs no lock; `_lock` guards only the queue and the flag `_closing`.

A connection heals itself: when it breaks, or when nothing arrives for `STALL_S` although something
is owed, requests without a reply are kept, sent again once it is up, and given up only past their
own deadline. Reads and block status are idempotent, so sending again is safe.
"""

import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import nbd

from relocator.errors import UpstreamError
from relocator.geometry import Extent

STALL_S = 10.0
CONNECT_S = 10.0
ALLOCATION = "base:allocation"
_BROKEN = frozenset(
    {errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT}
)


@dataclass(eq=False)
class Request:
    """A read, or a block status query, on its way.

    `done(request)` is called exactly once, on the connection's thread, with either `error` set or
    the result in `data` (a read) or `runs` (`(length, flags)` in bytes from `offset` on, which may
    cover less than was asked).
    """

    kind: str
    offset: int
    length: int
    done: Callable[["Request"], None]
    deadline_s: float | None = None
    data: bytearray = field(default_factory=bytearray)
    runs: list[tuple[int, int]] = field(default_factory=list)
    error: UpstreamError | None = None


def backoff(first_s: float = 0.1, factor: float = 2.0, limit_s: float = 2.0) -> Iterator[float]:
    """Waiting times between attempts, growing up to a limit."""
    while True:
        yield first_s
        first_s = min(first_s * factor, limit_s)


def open_handle(uri: str) -> Any:
    """A handle connected to `uri`, ready for requests; for a short question at start-up.

    Raises:
        UpstreamError: it can't be connected to within `CONNECT_S`.
    """
    handle = _new_handle()
    try:
        handle.aio_connect_uri(uri)
        give_up = time.monotonic() + CONNECT_S
        while not handle.aio_is_ready():
            left_s = give_up - time.monotonic()
            if left_s <= 0:
                raise UpstreamError(f"{uri}: no answer within {CONNECT_S:.0f} s", errno.ETIMEDOUT)
            handle.poll(int(left_s * 1000) + 1)
    except nbd.Error as error:
        raise UpstreamError(f"{uri}: {error.string}", error.errnum or errno.EIO) from error
    return handle


def _new_handle() -> Any:
    handle = nbd.NBD()
    handle.add_meta_context(ALLOCATION)
    handle.set_pread_initialize(False)
    return handle


def with_export(uri: str, name: str) -> str:
    """The same server's export `name`."""
    parts = urlsplit(uri)  # urlunsplit would drop the empty host of nbd+unix:///
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}/{quote(name)}{query}"


def read(handle: Any, offset: int, length: int, timeout_s: float = CONNECT_S) -> bytes:
    """Read over a handle that nothing else uses at the moment; errors as `read_many`."""
    return read_many(handle, [Extent(offset, length)], timeout_s)[0]


def read_many(handle: Any, extents: list[Extent], timeout_s: float = CONNECT_S) -> list[bytes]:
    """Read extents at once, pipelined, over a handle that nothing else uses at the moment.

    Raises:
        UpstreamError: one fails, or all together take longer than `timeout_s`.
    """
    buffers = [bytearray(extent.length) for extent in extents]
    errors: list[int] = []

    def completed(error: Any) -> int:
        errors.append(error.value)
        return 1

    give_up_s = time.monotonic() + timeout_s
    try:
        for extent, buffer in zip(extents, buffers, strict=True):
            handle.aio_pread(nbd.Buffer.from_buffer(buffer), extent.offset, completion=completed)
        while len(errors) < len(extents):
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                raise UpstreamError(f"no answer within {timeout_s:g} s", errno.ETIMEDOUT)
            handle.poll(int(left_s * 1000) + 1)
    except nbd.Error as error:
        raise UpstreamError(error.string, error.errnum or errno.EIO) from error
    if worst := max(errors, default=0):
        raise UpstreamError(f"the source failed a read: {os.strerror(worst)}", worst)
    return [bytes(buffer) for buffer in buffers]


class Connection:
    """A self-healing connection to `uri`; call `start` after nbdkit has forked."""

    def __init__(self, uri: str, name: str) -> None:
        self._uri = uri
        self._queue: deque[Request] = deque()
        self._in_flight: dict[int, Request] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._finished: list[Request] = []
        self._heard_s = 0.0
        self.connected = False
        self.has_allocation = False
        self.received_bytes = 0

    def start(self) -> None:
        """Start the thread and begin to connect."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request; safe from any thread, never waits."""
        with self._lock:
            if not self._closing:
                self._queue.append(request)
                os.eventfd_write(self._wake_fd, 1)
                return
        request.error = UpstreamError("the connection to the source was closed", errno.ESHUTDOWN)
        request.done(request)

    def close(self) -> None:
        """Disconnect; requests without a reply fail. Must not be called from a `done`."""
        with self._lock:
            self._closing = True
        os.eventfd_write(self._wake_fd, 1)
        if self._thread.is_alive():
            self._thread.join()

    # Below this line everything runs on the connection's own thread.

    def _run(self) -> None:
        delays = backoff()
        while not self._closing:
            handle = _new_handle()
            try:
                self._connect(handle)
                delays = backoff()
                self._serve(handle)
            except (nbd.Error, TimeoutError):
                pass  # the connection is gone: what it owed is sent again by the next one
            self.connected = False
            self._put_back()
            del handle
            if not self._closing:
                self._pause(next(delays))
        self._put_back()
        self._expire(all_of_them=True)

    def _connect(self, handle: Any) -> None:
        """Connect and negotiate; TimeoutError if that takes too long."""
        handle.aio_connect_uri(self._uri)
        give_up_s = time.monotonic() + CONNECT_S
        while not handle.aio_is_ready():
            if self._closing or time.monotonic() > give_up_s:
                raise TimeoutError
            self._poll(handle, min(give_up_s - time.monotonic(), 1.0))
            self._expire()
        self.has_allocation = handle.can_meta_context(ALLOCATION)
        self.connected = True
        self._heard_s = time.monotonic()

    def _serve(self, handle: Any) -> None:
        """Send what is queued and take replies until the connection breaks or is closed."""
        while not self._closing:
            while self._queue:
                self._send(handle, self._queue.popleft())
            self._poll(handle, 1.0)
            self._deliver()
            if handle.aio_is_dead() or handle.aio_is_closed():
                raise TimeoutError
            if not self._in_flight:
                self._heard_s = time.monotonic()
            elif time.monotonic() - self._heard_s > STALL_S:
                raise TimeoutError
        handle.aio_disconnect(0)

    def _poll(self, handle: Any, timeout_s: float) -> None:
        """Wait for the handle or for a new request, and let the handle make progress."""
        poller = select.poll()
        direction = handle.aio_get_direction()
        events = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | (
            select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
        )
        fd = handle.aio_get_fd()
        poller.register(fd, events)
        poller.register(self._wake_fd, select.POLLIN)
        for ready_fd, ready in poller.poll(max(timeout_s, 0.0) * 1000):
            if ready_fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)
            elif ready & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._heard_s = time.monotonic()
                handle.aio_notify_read()
            elif ready & select.POLLOUT:
                handle.aio_notify_write()

    def _send(self, handle: Any, request: Request) -> None:
        key = id(request)
        self._in_flight[key] = request

        def completed(error: Any) -> int:
            self._complete(key, error.value)
            return 1

        if request.kind == "read":
            request.data = bytearray(request.length)
            buffer = nbd.Buffer.from_buffer(request.data)
            handle.aio_pread(buffer, request.offset, completion=completed)
        elif self.has_allocation:
            request.runs = []

            def extents(_context: str, _offset: int, entries: list[int], _error: Any) -> int:
                request.runs += zip(entries[::2], entries[1::2], strict=True)
                return 0

            handle.aio_block_status(request.length, request.offset, extents, completion=completed)
        else:
            request.runs = [(request.length, 0)]
            self._complete(key, 0)

    def _complete(self, key: int, number: int) -> None:
        """A reply, or the end of the connection: then the request stays in flight, to be resent."""
        if number in _BROKEN:
            return
        request = self._in_flight.pop(key)
        if number:
            what = f"{request.kind} of {request.length} bytes at {request.offset}"
            request.error = UpstreamError(
                f"the source failed a {what}: {os.strerror(number)}", number
            )
        else:
            self.received_bytes += len(request.data)
        self._finished.append(request)

    def _deliver(self) -> None:
        """Hand finished requests to their owners, outside libnbd's callbacks."""
        finished, self._finished = self._finished, []
        for request in finished:
            request.done(request)

    def _put_back(self) -> None:
        """Queue again, in order and first, whatever has no reply."""
        self._deliver()
        owed, self._in_flight = list(self._in_flight.values()), {}
        with self._lock:
            self._queue.extendleft(reversed(owed))

    def _expire(self, *, all_of_them: bool = False) -> None:
        """Fail the queued requests whose time is up."""
        now_s = time.monotonic()
        with self._lock:
            queued: deque[Request] = deque()
            late: list[Request] = []
            for request in self._queue:
                expired = request.deadline_s is not None and now_s > request.deadline_s
                (late if expired or all_of_them else queued).append(request)
            self._queue = queued
        for request in late:
            request.error = UpstreamError(f"the source {self._uri} can't be reached", errno.EIO)
            request.done(request)

    def _pause(self, delay_s: float) -> None:
        """Wait before the next attempt, but not past anybody's deadline or a close."""
        until_s = time.monotonic() + delay_s
        while not self._closing and (left_s := until_s - time.monotonic()) > 0:
            poller = select.poll()
            poller.register(self._wake_fd, select.POLLIN)
            if poller.poll(min(left_s, 0.25) * 1000):
                os.eventfd_read(self._wake_fd)
            self._expire()
