"""The network between sites: connections whose every message the explorer holds in its hand.

A handle looks like libnbd's. What is asked over it lies in the network until it is *delivered*; the
server's real export then answers, and the answer lies there until the asker goes on. A *cut* ends
what is under way: the asker gets an error, the request may still arrive later, as a *late* one. A
process that dies resets its connections, and what was on its way to it is gone.
"""

import errno
import re
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from relocator.errors import RelocatorError, UpstreamError
from relocator.running.exports import NAMES
from relocator.source.endpoint import Endpoint
from tests.explore.threads import Here, Process, Task

_LOOKING = re.compile("/(stay_ready|take_over)[0-9]+$")
#: verbs that may arrive late with an effect
_LATE = ("control/seal", "control/moved", "control/withdrawn", "control/epoch")


class Server(Protocol):
    """What a site is to the network."""

    name: str
    process: Process

    @property
    def listens(self) -> bool:
        """Whether it can be connected to."""

    def open_export(self, name: str) -> Any:
        """The export, or ConfigError; UpstreamError if nobody listens."""


class Handle:
    """A connection to an export of `server`, made by the task `asker` of its client."""

    def __init__(self, network: "Network", asker: Task, server: Server, export: str) -> None:
        self.client, self.server, self.export = asker.process, server, export
        self.asker = asker.name  # several may ask the same at a time
        #: who answers is looked at, as connections are made for a seal, or begun anew in standby
        asks = export == "control/identify" or export.startswith("control/epoch")
        self.is_look = asks and _LOOKING.search(asker.name) is not None
        self.incarnation = server.process
        self._target = server.open_export(export)
        self.queued: list[tuple[memoryview, int, Callable[[Any], int]]] = []
        self.answers: list[tuple[memoryview, bytes, int, Callable[[Any], int]]] = []
        self.carrying = False  # the server is at work on what was delivered
        self.broken: int | None = None  # errno
        self._network = network

    @property
    def link(self) -> tuple[str, str]:
        """The sites it connects, in the link's order."""
        first, second = sorted((self.client.name.split(":")[0], self.server.name))
        return first, second

    @property
    def settled(self) -> bool:
        """Whether whoever waits for it can go on."""
        return self.broken is not None or bool(self.answers)

    # as libnbd's
    def get_size(self) -> int:
        return int(self._target.size_bytes)

    def get_block_size(self, _: int) -> int:
        return 0

    def aio_pread(self, view: memoryview, offset: int, *, completion: Callable[[Any], int]) -> None:
        if self.broken is not None:
            raise UpstreamError("the connection is lost", self.broken)
        self.queued.append((view, offset, completion))

    def aio_disconnect(self, _: int) -> None:
        self._network.drop(self)

    def aio_is_ready(self) -> bool:
        return self.broken is None

    def serve(self) -> None:
        """Carry out what was delivered (a task of the server)."""
        work, self.queued = self.queued, []
        self.carrying = True
        for view, offset, completion in work:
            buffer, error = bytearray(len(view)), 0
            try:
                self._target.read_into(memoryview(buffer), offset)
            except (RelocatorError, OSError) as failure:
                error = getattr(failure, "errno", None) or errno.EIO
            self.answers.append((view, bytes(buffer), error, completion))
        self.carrying = False

    def take(self) -> None:
        """What was answered reaches the asker."""
        if self.broken is not None:
            raise UpstreamError("the connection is lost", self.broken)
        answers, self.answers = self.answers, []
        for view, data, error, completion in answers:
            view[:] = data
            completion(Code(error))


class Code:
    """An errno, as libnbd hands it to a completion."""

    def __init__(self, value: int) -> None:
        self.value = value


class Network:
    """All connections, and which links are cut."""

    def __init__(self) -> None:
        self.servers: dict[str, Server] = {}
        self.handles: list[Handle] = []
        self.late: list[Handle] = []
        self.cut: set[tuple[str, str]] = set()

    @property
    def waiting(self) -> list[Handle]:
        """Those over which something was asked that is not delivered yet, in an order by names."""
        return sorted((one for one in self.handles if one.queued), key=_place)

    def connect(
        self, endpoint: Endpoint, *, listed: dict[str, str] | None = None, **_: Any
    ) -> Handle:
        """In place of `open_handle`."""
        parts = urlsplit(endpoint.uri)
        server = self.servers[parts.netloc]
        assert Here.kernel.current is not None
        asker = Here.kernel.current
        if self.is_cut(asker.process.name, server.name):
            raise UpstreamError(f"{endpoint.uri}: no answer", errno.ETIMEDOUT)
        try:
            handle = Handle(self, asker, server, unquote(parts.path.removeprefix("/")))
        except RelocatorError as error:
            raise UpstreamError(f"{endpoint.uri}: {error}", error.errno or errno.ENOENT) from error
        self.handles.append(handle)
        if listed is not None:
            listed.update(dict.fromkeys(NAMES, ""))
        return handle

    def reaches(self, client: str, endpoint: Endpoint) -> bool:
        """Whether connecting would succeed."""
        server = self.servers[urlsplit(endpoint.uri).netloc]
        return server.listens and not self.is_cut(client, server.name)

    def is_cut(self, one: str, other: str) -> bool:
        first, second = sorted((one, other))
        return (first, second) in self.cut

    def cut_link(self, link: tuple[str, str]) -> None:
        """Nothing passes any more; what is asked for times out, and may arrive later."""
        self.cut.add(link)
        for handle in [one for one in self.handles if one.link == link]:
            self._break(handle, errno.ETIMEDOUT)

    def drop(self, handle: Handle) -> None:
        """The client hangs up."""
        if handle in self.handles:
            self._break(handle, errno.ENOTCONN)

    def _break(self, handle: Handle, why: int) -> None:
        handle.broken = why
        handle.answers.clear()
        self.handles.remove(handle)
        if handle.queued and handle.export.startswith(_LATE):
            self.late = sorted([*self.late, handle], key=_place)
        else:
            handle.queued.clear()

    def process_died(self, process: Process) -> None:
        """Its connections are reset; what it has sent may still arrive."""
        for handle in list(self.handles):
            if handle.incarnation is process:
                handle.queued.clear()
                self._break(handle, errno.ECONNRESET)
            elif handle.client is process:
                self._break(handle, errno.ECONNRESET)
        self.late = [one for one in self.late if one.incarnation is not process]


def _place(handle: Handle) -> tuple[str, ...]:
    return handle.client.name, handle.server.name, *handle.export.split("/")[:2], handle.asker


def progress(handle: Handle, _timeout_s: float, _wake_fd: int | None = None) -> bool:
    """In place of the real one: wait until something has come over the handle."""
    if not handle.export and handle.queued:
        handle.serve()  # samples of the disk: nothing hangs on when they are read
    if not handle.settled:
        Here.kernel.wait(lambda: handle.settled)
    handle.take()
    return True


def hang_up(handle: Handle) -> None:
    """In place of `hear_out`: with nothing in between."""
    handle.aio_disconnect(0)


def is_quiet(handle: Handle) -> bool:
    """In place of the real one."""
    return not handle.settled
