"""One NBD connection to the source: one libnbd handle, owned by one thread.

Other threads hand requests over through a queue and an eventfd; replies are delivered on the
connection's thread through each request's `done`. The handle is never touched from outside, so it
needs no lock; `_lock` guards only the queue and the flag `_closing`.

What a server takes in one request is limited by its block sizes: a request is widened and cut to
fit, and its owner gets what was asked for.

A connection heals itself: when it breaks, or when nothing arrives for `STALL_S` although something
is owed, requests without a reply are kept, sent again once it is up, and given up only past their
own deadline. One that can't come back hands them over, if somebody `takes_over`. Reads and block
status are idempotent, so sending again is safe.

A source's disk may take minutes for a bad sector, and a server that serves one after the other is
stuck there. So the oldest of what was owed in vain is given to a connection that is apart, if
somebody `sets_apart`, or else is sent last; and it is waited for twice as long the next time,
`MOST_DOUBLED` times at most.

A link delivers a reply in many packets, and to wake up for each costs more than the reply itself:
seven hand-overs of Python's lock. A connection that no guest waits for *gathers*: while more than
a reply is owed, it wakes up for `GATHER_BYTES`, or after `GATHER_S` (TCP only).
"""

import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import nbd

from relocator.errors import OtherDiskError, OutdatedError, RefusedError, StoreError, UpstreamError
from relocator.source.endpoint import Endpoint
from relocator.source.handles import (
    ALLOCATION,
    Limits,
    aio_pread,
    check_size,
    hear_out,
    limits_of,
    low_water_of,
    open_handle,
    progress,
)
from relocator.source.requests import Request
from relocator.source.sockets import LowWater, round_trip_s

STALL_S = 10.0
MOST_DOUBLED = 5
GATHER_BYTES = 16 << 10
GATHER_S = 0.002
#: Errors that say nothing of the request: the connection is gone, or the server is about to go.
_BROKEN = frozenset(
    {errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT}
)
#: Errors by which libnbd rejects a request, such as one beyond the disk's end: it always would.
_REJECTED = frozenset({errno.EINVAL, errno.ERANGE})


class Guard(Protocol):
    """Refuses a source that has become another disk (see identity.py), by an UpstreamError."""

    def check(self, handle: Any) -> None:
        """Look at a handle that has just connected."""


def backoff(first_s: float = 0.1, factor: float = 2.0, limit_s: float = 2.0) -> Iterator[float]:
    """Waiting times between attempts, growing up to a limit."""
    while True:
        yield first_s
        first_s = min(first_s * factor, limit_s)


@dataclass(eq=False)
class _Flight:
    """A request that was sent, in `parts` pieces that have no reply yet."""

    request: Request
    number: int
    parts: int = 1
    error: int = 0
    looks: int = 0


class Connection:
    """A self-healing connection to `endpoint`; call `start` after nbdkit has forked.

    `gathers`: no guest waits for its replies.
    """

    def __init__(
        self, endpoint: Endpoint, name: str, guard: Guard | None = None, *, gathers: bool = False
    ) -> None:
        self._endpoint = endpoint
        self._gathers = gathers
        self._guard = guard
        self._queue: deque[Request] = deque()
        self._in_flight: dict[int, _Flight] = {}
        self._lock = threading.Lock()
        self._closing = self._renewing = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._finished: list[Request] = []
        self._heard_s = 0.0
        self._size_bytes: int | None = None
        self._limits = Limits(0, 1, 1)
        self._lost = False
        self._why = "not connected yet"
        self.connected = False
        #: whether it was up, and broke
        self.was_lost = False
        #: why the source is not taken for the one it was
        self.refusal: str | None = None
        self.has_allocation = False
        self.multi_conn: bool | None = None
        #: the round trip in seconds as TCP knew it when it connected; 0.0 if it isn't known
        self.round_trip_s = 0.0
        #: called on the connection's thread whenever it is up
        self.on_connected: Callable[[], None] = lambda: None
        #: called on the connection's thread when an attempt to connect has failed, for each request
        #: that it keeps; whether another connection has it now
        self.takes_over: Callable[[Request], bool] = lambda _request: False
        #: called on the connection's thread when a request has been owed in vain; whether another
        #: connection has it now
        self.sets_apart: Callable[[Request], bool] = lambda _request: False
        #: called on the connection's thread when a request has been owed in vain more than once,
        #: and, with None, when one is over that was owed in vain
        self.on_silence: Callable[[Request, str | None], None] = lambda _request, _why: None
        self._looked_s = 0.0
        self._sent = self._overtaken = 0  # numbers: of the newest that was sent, and answered
        self._asked_bytes = 0  # under `_lock`
        self._answered_bytes = 0  # by the connection's own thread
        self._largest_bytes = 0

    def start(self) -> None:
        """Start the thread and begin to connect."""
        self._thread.start()

    @property
    def owed_bytes(self) -> int:
        """How many bytes of replies were asked for and are not here yet."""
        return self._asked_bytes - self._answered_bytes

    @property
    def silent_s(self) -> float:
        """For how long nothing has come although something is owed, while it is connected."""
        return time.monotonic() - self._heard_s if self.connected and self._in_flight else 0.0

    def submit(self, request: Request) -> None:
        """Queue a request; safe from any thread, never waits."""
        with self._lock:
            if not self._closing:
                self._queue.append(request)
                self._asked_bytes += request.reply_bytes
                os.eventfd_write(self._wake_fd, 1)
                return
        request.error = UpstreamError("the connection to the source was closed", errno.ESHUTDOWN)
        request.done(request)

    def renew(self) -> None:
        """Connect anew: who answered may be another disk. From now on nothing is asked of that.

        What was asked and has no reply is asked again.
        """
        self.refusal, self._renewing = None, True
        os.eventfd_write(self._wake_fd, 1)

    def leave(self) -> None:
        """Begin to disconnect: what is on its way is waited for, but not for long."""
        with self._lock:
            self._closing = True
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Disconnect; requests without a reply fail. Must not be called from a `done`."""
        self.leave()
        if self._thread.is_alive():
            self._thread.join()

    # Below this line everything runs on the connection's own thread.

    def _run(self) -> None:
        delays = backoff()
        while not self._closing:
            handle, in_vain = None, False
            try:
                handle, low_water = self._connect()
                delays = backoff()
                with low_water:
                    self._serve(handle, low_water)
            except (nbd.Error, UpstreamError, StoreError) as error:
                self._why = str(error)
                told = isinstance(error, (OtherDiskError, StoreError))
                self.refusal = self._why if told else None
                in_vain = isinstance(error, OutdatedError)
                # What it owed is sent again by the next connection.
            self.was_lost = self.was_lost or self.connected
            self.connected = False
            self._put_back()
            if in_vain:
                self._expire(all_of_them=True)
            elif handle is None:
                self._hand_over()
            del handle
            if not self._closing:
                self._pause(next(delays))
        self._put_back()
        self._expire(all_of_them=True)

    def _connect(self) -> tuple[Any, LowWater]:
        """Connect and negotiate."""

        def idle() -> None:
            self._check_open()
            self._expire()

        self._renewing = False  # before who answers is looked at
        handle = open_handle(self._endpoint, idle=idle, wake_fd=self._wake_fd)
        if self._size_bytes is not None:
            check_size(handle, self._size_bytes)
        if self._guard is not None:
            self._guard.check(handle)
        self._size_bytes = handle.get_size()
        self.has_allocation = handle.can_meta_context(ALLOCATION)
        self.multi_conn = handle.can_multi_conn()
        self.round_trip_s = round_trip_s(handle.aio_get_fd())
        self._limits = limits_of(handle)
        low_water = low_water_of(handle, self._endpoint)
        self._lost = False
        self.refusal = None
        self.connected = True
        self._heard_s = self._looked_s = time.monotonic()
        self.on_connected()
        return handle, low_water

    def _check_open(self) -> None:
        if self._closing:
            raise UpstreamError("the connection to the source was closed", errno.ESHUTDOWN)

    def _serve(self, handle: Any, low_water: LowWater) -> None:
        """Send what is queued and take replies until the connection breaks or is closed."""
        in_vain = False
        while not self._closing:
            while self._queue and not self._renewing:
                self._send(handle, self._queue.popleft())
            if self._renewing:
                hear_out(handle)
                raise UpstreamError("who answers is looked at anew", errno.ENOTCONN)
            gather = self._gathers and not in_vain and self._owes_more_than_a_reply
            low_water.set(GATHER_BYTES if gather else 1)
            if heard := progress(handle, GATHER_S if gather else 1.0, self._wake_fd):
                self._heard_s, in_vain = time.monotonic(), False
            else:
                in_vain = gather
            self._deliver()
            gone = handle.aio_is_dead() or handle.aio_is_closed()
            if self._lost and not gone:  # it says so, and owes more such answers
                hear_out(handle)
            if self._lost or gone:
                raise UpstreamError("the source ended the connection", errno.ENOTCONN)
            if not self._in_flight:
                self._heard_s = time.monotonic()
            elif not heard and time.monotonic() - self._heard_s > STALL_S:
                self._stall()
            if self._heard_s - self._looked_s > STALL_S:
                self._look()
        low_water.set(1)
        hear_out(handle)

    def _look(self) -> None:
        """Once in `STALL_S`: tell whose replies others overtake, again."""
        self._looked_s = self._heard_s
        for flight in list(self._in_flight.values()):
            flight.looks += 1
            if flight.looks > 2 and flight.number < self._overtaken:
                flight.request.stuck()

    def _stall(self) -> None:
        """Nothing has come for `STALL_S`: an UpstreamError, unless the oldest has longer."""
        owed = [flight.request for flight in self._in_flight.values()]
        for request in owed:
            if request.stalls:
                request.stuck()
        patience_s = STALL_S * 2 ** min(owed[0].stalls, MOST_DOUBLED)
        if time.monotonic() - self._heard_s > patience_s:
            self._put_aside(owed[0])
            raise UpstreamError(f"no reply for {patience_s:.0f} s", errno.ETIMEDOUT)

    def _put_aside(self, oldest: Request) -> None:
        """Let nothing wait for a request that has been owed in vain."""
        oldest.silent_since_s = oldest.silent_since_s or self._heard_s
        oldest.stalls += 1
        oldest.stuck()
        if oldest.stalls > 1:
            silent_s = time.monotonic() - oldest.silent_since_s
            why = f"the source has not answered a {oldest.what} for {silent_s:.0f} s"
            self.on_silence(oldest, why)
        flight = self._in_flight.pop(id(oldest))
        if self.sets_apart(oldest):
            self._answered_bytes += oldest.reply_bytes
        else:
            self._in_flight[id(oldest)] = flight

    @property
    def _owes_more_than_a_reply(self) -> bool:
        return self.owed_bytes > self._largest_bytes + GATHER_BYTES

    def _send(self, handle: Any, request: Request) -> None:
        self._largest_bytes = max(self._largest_bytes, request.reply_bytes)
        self._sent += 1
        flight = self._in_flight[id(request)] = _Flight(request, self._sent)

        def completed(error: Any) -> int:
            self._complete(flight, error.value)
            return 1

        unsent = 1
        try:
            if request.kind == "read":
                pieces = self._limits.pieces(request.offset, request.length)
                start, flight.parts = pieces[0].offset, len(pieces)
                request.data = bytearray(sum(piece.length for piece in pieces))
                unsent = len(pieces)
                for piece in pieces:
                    aio_pread(handle, request.data, piece, start, completed)
                    unsent -= 1
            elif self.has_allocation:
                self._ask_status(handle, request, completed)
            else:
                request.runs = [(request.length, 0)]
                self._complete(flight, 0)
        except nbd.Error as error:
            if error.errnum not in _REJECTED or handle.aio_is_dead() or handle.aio_is_closed():
                raise
            flight.parts -= unsent - 1
            self._complete(flight, error.errnum)

    def _ask_status(self, handle: Any, request: Request, completed: Callable[[Any], int]) -> None:
        start, length = self._limits.widen(request.offset, request.length)
        request.runs = []

        def extents(_context: str, _offset: int, entries: list[int], _error: Any) -> int:
            request.runs += zip(entries[::2], entries[1::2], strict=True)
            return 0

        handle.aio_block_status(length, start, extents, completion=completed)

    def _complete(self, flight: _Flight, number: int) -> None:
        """A reply, or the end of the connection: then the request stays in flight, to be resent."""
        if number in _BROKEN:
            self._lost = True
            return
        flight.parts -= 1
        flight.error = flight.error or number
        request = flight.request
        if flight.parts or self._in_flight.pop(id(request), None) is None:
            return
        self._overtaken = max(self._overtaken, flight.number)
        if flight.error:
            request.error = RefusedError(
                f"the source failed a {request.what}: {os.strerror(flight.error)}", flight.error
            )
        else:
            request.trim(self._limits)
        if request.stalls:
            self.on_silence(request, None)
        self._finished.append(request)

    def _deliver(self) -> None:
        """Hand finished requests to their owners, outside libnbd's callbacks."""
        finished, self._finished = self._finished, []
        for request in finished:
            self._answered_bytes += request.reply_bytes
            request.done(request)

    def _put_back(self) -> None:
        """Queue again, in order and first, whatever has no reply."""
        self._deliver()
        owed = [flight.request for flight in self._in_flight.values()]
        self._in_flight = {}
        with self._lock:
            self._queue.extendleft(reversed(owed))

    def _hand_over(self) -> None:
        """Let others carry out what is queued, as far as they can: this may be down for long."""
        with self._lock:
            queued, self._queue = self._queue, deque()
        kept: list[Request] = []
        for request in queued:
            if not self._closing and self.takes_over(request):
                self._answered_bytes += request.reply_bytes
            else:
                kept.append(request)
        with self._lock:
            self._queue.extendleft(reversed(kept))

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
            what = f"the source {self._endpoint.uri} can't be reached: {self._why}"
            request.error = UpstreamError(what, errno.EIO)
            if request.stalls:
                self.on_silence(request, None)
            self._answered_bytes += request.reply_bytes
            request.done(request)

    def _pause(self, delay_s: float) -> None:
        """Wait before the next attempt, but not past anybody's deadline or a close."""
        until_s = time.monotonic() + delay_s
        while not (self._closing or self._renewing) and (left_s := until_s - time.monotonic()) > 0:
            poller = select.poll()
            poller.register(self._wake_fd, select.POLLIN)
            if poller.poll(min(left_s, 0.25) * 1000):
                os.eventfd_read(self._wake_fd)
            self._expire()
