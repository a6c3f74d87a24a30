"""A site: its store, and its server while that runs.

The engine, its handover, its store and all that they use are the product's own. What stands in is
what would need a network or a clock: the data connection, and the two that pace and plan the copy.
A block is copied when the explorer says so.
"""

from collections.abc import Callable
from typing import Any

from relocator.config import Config
from relocator.copying.hydration import Hydration, Released
from relocator.errors import OtherDiskError, RefusedError, RelocatorError, UpstreamError
from relocator.running.engine import Engine
from relocator.running.opening import open_disk
from relocator.running.parts import Transfer
from relocator.source.identity import Guard
from relocator.source.upstream import Request
from relocator.store import meta as metadata
from relocator.store.meta import Meta
from tests.explore.network import Network
from tests.explore.storage import Files, Storage
from tests.explore.threads import Here, Kernel, Process, Thread
from tests.support.hydration import unheard

BLOCK_BYTES = 4096


class Data:
    """In place of `Upstream`: one connection for the disk's bytes, looked at by the real guard."""

    uri = "explored"
    retry_timeout_s = 60.0
    connections = lanes = 1
    is_background_silent = was_lost = False

    def __init__(self, network: Network, settings: Config, guard: Guard) -> None:
        self._network = network
        assert settings.endpoint is not None
        self._endpoint = settings.endpoint
        self._me = ""
        self._guard = guard
        self._closing = False
        self._known = False
        self.handle: Any = None
        self.refusal: str | None = None
        self.flights: list[Request] = []
        self._came: list[Request] = []
        self._thread = Thread(target=self._run, name="data")

    @property
    def connected(self) -> bool:
        return self.handle is not None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing = True

    def renew(self) -> None:
        self.refusal = None
        if self.handle is not None:
            self._network.drop(self.handle)

    def fetch(self, offset: int, length: int, done: Callable[[Request], None], **_: Any) -> None:
        request = Request("read", offset, length, done)
        self.flights.append(request)
        self._send(request)

    def _send(self, request: Request) -> None:
        if self.handle is None or self.handle.broken is not None:
            return  # it is sent once there is a connection
        request.data = bytearray(request.length)

        def completed(error: Any) -> int:
            if error.value:
                request.error = RefusedError("the source failed a read", error.value)
            self._came.append(request)
            return 1

        self.handle.aio_pread(memoryview(request.data), request.offset, completion=completed)

    def _run(self) -> None:
        assert Here.kernel.current is not None
        self._me = Here.kernel.current.process.name
        while not self._closing:
            try:
                self._connect()
                self._serve()
            except OtherDiskError as error:
                self.refusal = str(error)
                Here.kernel.wait(lambda: self._closing, 0.0)
            except UpstreamError:
                self.handle = None
                Here.kernel.wait(lambda: self._closing or self._reachable())
        for request in self.flights:
            request.error = UpstreamError("closed")
            request.done(request)

    def _reachable(self) -> bool:
        return self._network.reaches(self._me, self._endpoint)

    def _connect(self) -> None:
        handle = self._network.connect(self._endpoint)
        self._guard.check(handle)
        self.handle, self._known, self.refusal = handle, True, None
        for request in self.flights:
            self._send(request)

    def _serve(self) -> None:
        handle = self.handle
        while not self._closing:
            Here.kernel.wait(lambda: self._closing or handle.settled)
            if handle.settled:
                handle.take()
            came, self._came = self._came, []
            for request in came:
                self.flights.remove(request)
                request.done(request)
        self._network.drop(handle)


class Pace:
    """In place of `Pacer`: nothing is paced, and `running` is a switch."""

    round_trip_bytes = in_flight_bytes = 0
    bytes_per_s = 0.0

    def __init__(self) -> None:
        self.running = self.paused = False

    def set_enabled(self, enabled: bool) -> None:
        self.running = enabled

    def set_paused(self, paused: bool) -> None:
        self.paused = paused

    def wake(self) -> None:
        """Nobody sleeps here."""

    def end_complaints(self) -> None:
        """Nobody complains."""

    def demand(self, _length: int) -> Released:
        return unheard

    background = demand


class Copy:
    """In place of `Copier`: it copies what it is told to, and finishes as the real one does."""

    def __init__(self, hydration: Hydration, over: Callable[[], bool], finish: Callable[[], bool]):
        self._hydration = hydration
        self._over = over
        self._finish = finish
        self._thread = Thread(target=self._run, name="copier")

    def start(self) -> None:
        self._thread.start()

    def block(self, number: int) -> None:
        """Ask for one block."""
        if (claim := self._hydration.background.claim(number, number + 1, 1)) is not None:
            self._hydration.send(claim, unheard)

    def missed(self, first: int, end: int) -> None:
        """Nothing is fetched ahead."""

    def _run(self) -> None:
        Here.kernel.wait(self._over)
        while not self._finish():
            Here.kernel.wait(lambda: False, 0.0)


class ExploredEngine(Engine):
    """The engine, with these in it."""

    network: Network

    def _make_transfer(self, settings: Config) -> Transfer:
        store, lifecycle = self._store, self._lifecycle
        assert settings.endpoint is not None
        data: Any = Data(self.network, settings, Guard(store, settings.endpoint))
        pace: Any = Pace()
        hydration = Hydration(store, data, on_demand=pace.demand, on_complete=pace.wake)
        copy: Any = Copy(
            hydration, lambda: store.all_present and not lifecycle.pass_through, self._finish
        )
        return Transfer(data, hydration, pace, copy, None)


class Site:
    """A site by name; `settings` is what its server is started with."""

    def __init__(self, kernel: Kernel, network: Network, storage: Storage, name: str) -> None:
        self.name = name
        self.storage = storage
        self.settings = self.otherwise = Config()  # the latter: what is started if that fails
        self.process = Process(name)
        self.process.alive = False
        self.engine: Engine | None = None
        self.refused: str | None = None
        self.boots = 0
        self.left: tuple[Any, ...] = ()  # of a dead server: what its maps and image are
        self._kernel = kernel
        self._network = network
        network.servers[name] = self

    def start(self) -> None:
        """Start the server; it is up once its task says so."""
        self.process = Process(self.name)
        self.refused = None
        self._kernel.spawn(self.process, "open", self._open)

    def _open(self) -> None:
        try:
            engine = ExploredEngine(self.settings, open_disk(self.settings), [])
        except (RelocatorError, OSError) as error:
            self.refused = str(error)
            self.process.alive = False
            self.settings = self.otherwise
            return
        self.otherwise = self.settings
        engine.verbs._status.now = dict  # type: ignore[method-assign]
        self.engine = engine
        engine.start()

    def open_export(self, name: str) -> Any:
        if self.engine is None:
            raise UpstreamError("nobody listens", 111)
        return self.engine.open_session(name)

    def verb(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert self.engine is not None
        return self.engine.verbs.call(verb, arguments)

    def write_slowly(self) -> None:
        """From now on a write of the image lets others go on before it is done."""
        image = self.store.image
        if not hasattr(image, "at_once"):
            image.at_once = image.write

            def write(data: Any, offset: int) -> None:
                self._kernel.wait(lambda: True)
                image.at_once(data, offset)

            image.write = write

    def die(self, *, power: bool) -> None:
        """The server is killed, or the whole site loses power."""
        self._kernel.end(self.process)
        self._network.process_died(self.process)
        if self.engine is not None:
            self.left = self.content()
            self.engine._store.abandon()
            self.engine = None
        Files.close_all_of(self.process)
        if power:
            self.boots += 1
            self.storage.fail_power()
            self.left = ()

    # what is looked at
    @property
    def listens(self) -> bool:
        return self.engine is not None

    @property
    def store(self) -> Any:
        assert self.engine is not None
        return self.engine._store

    @property
    def life(self) -> Any:
        assert self.engine is not None
        return self.engine._lifecycle

    @property
    def meta(self) -> Meta | None:
        """What the disk knows of itself; of a server that is down, by its file."""
        if self.engine is not None:
            return self.store.meta  # type: ignore[no-any-return]
        return None if self.settings.store is None else metadata.read(self.settings.store)

    @property
    def writable(self) -> bool:
        """Whether a guest's write would be acknowledged now."""
        if self.engine is None:
            return False
        gate = self.life.gate
        return gate._pause is None and gate._refusal is None

    def content(self) -> tuple[Any, ...]:
        """(which blocks are believed to be here, the first byte of each block of the image)."""
        store, total = self.store, self.store.geometry.total_blocks
        here = tuple(self.life.all_here or bool(store.present[at]) for at in range(total))
        buffer = bytearray(total * BLOCK_BYTES)
        store.image.read_into(buffer, 0)
        return here, tuple(buffer[at * BLOCK_BYTES] for at in range(total))
