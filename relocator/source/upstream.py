"""The disk's upstream: the site it comes from, over a pool of connections.

Demand and background have connections of their own, so that a read the guest waits for never
queues behind background replies in a socket's buffer. What is asked for and not yet received is
all there is on the link: the copier bounds it (see pacing.py).
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from relocator.errors import UpstreamError
from relocator.filesystem.rounds import Rounds, serve
from relocator.source.apart import Apart
from relocator.source.connection import Connection, Guard
from relocator.source.endpoint import Endpoint
from relocator.source.handles import connected, read_many
from relocator.source.requests import Request
from relocator.store.geometry import Extent

T = TypeVar("T")
Done = Callable[[Request], None]
FEWEST = 2
FAR = 13
FAR_S = 0.05
SILENT_S = 1.0


def probe_size(endpoint: Endpoint) -> int:
    """Size of the disk behind `endpoint` in bytes, by a connection of its own, closed again.

    Raises:
        UpstreamError: the source can't be reached.
    """
    with connected(endpoint) as handle:
        return int(handle.get_size())


class Upstream:
    """Reads from the source. Replies arrive on the connections' threads.

    Of `connections`, one is for demand. The others share the background's requests: each goes to
    the one that owes least. All but the first of these are opened as soon as that has said that the
    source bears several clients (`can_multi_conn`), long before anything is copied if the proxy is
    in standby. With `shared`, no connection is kept for demand. What one that can't come back was
    asked for goes to another: a server may bear no second client, or a firewall no new connection.

    What the source leaves unanswered is waited for over connections that are apart, one for guests
    and one for the copy. So is whatever is asked for there later, until that was read once.

    How many: None is `FEWEST`, or `FAR` where the round trip is `FAR_S` or more. A connection
    begins with some 14 KB a round trip and doubles that each time, so twelve fill the link three or
    four round trips sooner than one.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        retry_timeout_s: float,
        connections: int | None = None,
        guard: Guard | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self.uri = endpoint.uri
        self.retry_timeout_s = retry_timeout_s
        self._endpoint = endpoint
        self._guard = guard
        self._wanted = connections
        self._shared = shared
        self._demand = Connection(endpoint, "upstream-demand", guard)
        #: told what the source has not answered for long, and None once it has, on any thread
        self.on_silence: Callable[[str | None], None] = lambda _why: None
        self._demand.sets_apart = self._set_apart
        self._look_after(self._demand)
        self._silent: dict[int, str] = {}
        self._slow: dict[Extent, int] = {}  # where a read was left unanswered, and how often
        self._apart = self._apart_connection("upstream-apart")
        self._demand_apart = self._apart_connection("upstream-demand-apart")
        first = self._background_connection(1)
        first.on_connected = self._open_others
        #: of what is silent or slow, and of these two: who leaves, leaves nobody behind
        self._lock = threading.Lock()
        self._background = [first]
        self._closing = False

    def start(self) -> None:
        """Connect, in the background."""
        self._demand.start()
        self._background[0].start()

    @property
    def connected(self) -> bool:
        """Whether a read would be sent at once."""
        return self._demand.connected and self._background[0].connected

    @property
    def connections(self) -> int:
        """How many connections are up."""
        return sum(one.connected for one in self._everyone)

    @property
    def silent_s(self) -> float:
        """For how long a connection has been owed something and brought nothing."""
        return max(one.silent_s for one in self._everyone)

    @property
    def is_background_silent(self) -> bool:
        """Whether a background connection has brought nothing for a while, and demand's has."""
        silent_s = max(one.silent_s for one in self._background)
        return silent_s > SILENT_S > self._demand.silent_s

    @property
    def _everyone(self) -> list[Connection]:
        return [self._demand, self._demand_apart, *self._background, self._apart]

    @property
    def lanes(self) -> int:
        """How many connections the background copy has, up or not."""
        return len(self._background)

    @property
    def refusal(self) -> str | None:
        """Why what answers is not taken for the source; None if it is, or nothing answers."""
        return self._demand.refusal or self._background[0].refusal

    def _background_connection(self, number: int) -> Connection:
        name = f"upstream-background-{number}"
        one = Connection(self._endpoint, name, self._guard, gathers=not self._shared)
        one.sets_apart = self._set_apart
        self._look_after(one)
        return one

    def _apart_connection(self, name: str) -> Apart:
        one = Apart(self._endpoint, name, self._guard)
        self._look_after(one)
        return one

    def _look_after(self, one: Connection) -> None:
        one.takes_over = self._take_over
        one.on_silence = self._tell_silence

    def _open_others(self) -> None:
        """The first background connection is up; runs on its thread."""
        first = self._background[0]
        wanted = self._wanted or (FAR if first.round_trip_s >= FAR_S else FEWEST)
        with self._lock:
            if not first.multi_conn or len(self._background) > 1 or self._closing:
                return
            with suppress(OSError):  # no file may be opened any more: there are fewer of them
                for number in range(2, wanted):
                    one = self._background_connection(number)
                    one.start()
                    self._background.append(one)

    def _tell_silence(self, request: Request, why: str | None) -> None:
        with self._lock:
            if why is not None:
                self._silent[id(request)] = why
            else:
                self._silent.pop(id(request), None)
                self._note_end(request)
            self.on_silence(next(reversed(self._silent.values()), None))

    def _note_end(self, request: Request) -> None:
        """What is over tells more than what was known of the place."""
        if request.kind == "read":
            for place in [place for place in self._slow if request.overlaps(place)]:
                del self._slow[place]
            if request.error is not None:
                self._slow[request.extent] = request.stalls

    def _give_time(self, request: Request) -> bool:
        """As much as its place took before; whether the source was silent there at all."""
        with self._lock:
            found = [stalls for place, stalls in self._slow.items() if request.overlaps(place)]
        request.stalls = max(found, default=0)
        return request.stalls > 0

    def _set_apart(self, request: Request) -> bool:
        """Let nothing else wait for it, if the source bears several clients."""
        one = self._apart if request.deadline_s is None else self._demand_apart
        with self._lock:
            if self._closing or self.connections < FEWEST:
                return False
            if request.kind == "read":
                self._slow[request.extent] = request.stalls
            one.start()
        one.submit(request)
        return True

    def _least_busy(self) -> Connection:
        """The background connection for the next request."""
        candidates = [self._demand, *self._background] if self._shared else self._background
        return min(
            (one for one in candidates if one.connected),
            key=lambda one: one.owed_bytes,
            default=self._background[0],
        )

    def _take_over(self, request: Request) -> bool:
        """Give a request to a connection that is up, if there is one.

        One that was left unanswered goes to one that has nothing else to do.
        """
        other = self._least_busy()
        if not other.connected:
            other = self._demand
        if not other.connected or (request.stalls and other.owed_bytes):
            return False
        other.submit(request)
        return True

    def fetch(
        self,
        offset: int,
        length: int,
        done: Done,
        *,
        background: bool,
        stuck: Callable[[], None] = lambda: None,
    ) -> None:
        """Read `length` bytes at `offset`; `done` gets them, or the error; `stuck` as of `Request`.

        A demand read fails once the source has been lost for the retry timeout; a background read
        waits for it as long as it takes.
        """
        if background:
            request = Request("read", offset, length, done, stuck=stuck)
            connection = self._least_busy()
        else:
            deadline_s = time.monotonic() + self.retry_timeout_s
            request = Request("read", offset, length, done, deadline_s, stuck=stuck)
            connection = self._least_busy() if self._shared else self._demand
        if self._slow and self._give_time(request) and self._set_apart(request):
            return
        connection.submit(request)

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
        self._least_busy().submit(Request("block status", offset, length, done))

    def serve(self, rounds: Rounds[T]) -> T:
        """Serve the rounds of a reader, whose verdict is of the disk that is copied and no other.

        Over a connection of its own: the guard looks at it before, and at the end once more, since
        who answers the guard need not be who is read.

        Raises:
            UpstreamError: the source can't be reached, fails a read, or is another disk.
            StoreError: as of `Guard.check`.
        """
        with connected(self._endpoint) as handle:
            self._check(handle)
            found = serve(rounds, lambda wanted: read_many(handle, wanted, timeout_s=60.0))
            self._check(handle)
        return found

    def _check(self, handle: Any) -> None:
        if self._guard is not None:
            self._guard.check(handle)

    @property
    def was_lost(self) -> bool:
        """Whether a connection was made anew, perhaps to another server than the first."""
        return any(one.was_lost for one in [self._demand, *self._background])

    def renew(self) -> None:
        """Connect anew, so that who answers is looked at again; see `Connection.renew`."""
        with self._lock:
            for one in self._everyone:
                one.renew()

    def close(self) -> None:
        """Disconnect; whatever waits fails. Must not be called from a `done`."""
        with self._lock:
            self._closing = True
            everyone = self._everyone
        for one in everyone:
            one.leave()
        for one in everyone:
            one.close()


__all__ = ["Done", "Request", "Upstream", "UpstreamError", "probe_size"]
