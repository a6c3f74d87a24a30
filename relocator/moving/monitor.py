"""One QEMU, spoken to by QMP: commands, and the events it tells, from ordinary threads.

`qemu.qmp` is asynchronous; its loop runs on a thread of its own, of which there is one for all
monitors. Events are kept with the time at which they arrived, by this host's clock, beside QEMU's
own. `_moved` guards the list and is told of each new one.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from relocator.errors import RelocatorError
from relocator.moving.address import Address
from relocator.moving.reach import Reach

T = TypeVar("T")
CONNECT_S = 10.0
COMMAND_S = 30.0
CLOSE_S = 5.0


class MonitorLostError(RelocatorError):
    """QEMU can't be reached: it has ended, or only the way to it has."""


class NoAnswerError(MonitorLostError):
    """QEMU is there, perhaps, but says nothing in time."""


class Event(NamedTuple):
    """What QEMU told: its own clock's time, and this host's when it arrived, both since 1970."""

    name: str
    data: dict[str, Any]
    at_s: float
    received_s: float


class _Loop:
    """An event loop on a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # What fails is told to who waits for it; a connection that was given up, to nobody.
        self._loop.set_exception_handler(lambda _loop, _context: None)
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()

    def run(self, job: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """The result of `job`; TimeoutError if it takes longer, KeyboardInterrupt as ever."""
        future = asyncio.run_coroutine_threadsafe(job, self._loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def start(self, job: Coroutine[Any, Any, None]) -> Future[None]:
        """Let `job` run beside everything else, until it is cancelled."""
        return asyncio.run_coroutine_threadsafe(job, self._loop)

    def end(self) -> None:
        """Cancel all that runs, and end the thread."""
        with suppress(Exception):
            self.run(_cancel_all(), CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()


async def _cancel_all() -> None:
    """Cancel every task but this one, and wait for them."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Shared:
    """The loop of all monitors, as long as one is connected; taken and left by one thread."""

    loop: _Loop | None = None
    users = 0

    @classmethod
    def take(cls) -> _Loop:
        """The loop, begun by the first."""
        cls.loop = cls.loop or _Loop()
        cls.users += 1
        return cls.loop

    @classmethod
    def leave(cls) -> None:
        """The last one ends it."""
        cls.users -= 1
        if cls.users == 0 and cls.loop is not None:
            cls.loop.end()
            cls.loop = None


def _library() -> Any:
    try:
        import qemu.qmp
    except ImportError as error:
        raise RelocatorError(
            "relocator migrate needs the Python package qemu.qmp: "
            "pip install qemu.qmp (or, in a checkout, make install)"
        ) from error
    return qemu.qmp


class Monitor:
    """The QEMU whose QMP socket is at `address`; `name` is what messages call it."""

    def __init__(self, name: str, address: Address, reach: Reach) -> None:
        self.name = name
        self.address = address
        self._reach = reach
        self._client: Any = None
        self._loop: _Loop
        self._listening: Future[None]
        self._events: list[Event] = []
        self._moved = threading.Condition()

    def connect(self) -> None:
        """Connect, unless that has been done and holds.

        Raises:
            MonitorLostError: nobody answers there.
        """
        library = _library()
        if self._client is not None:
            if self._client.runstate is library.Runstate.RUNNING:
                return
            self.close()  # it has broken off
        to = (
            self._reach.path(self.address)
            if self.address.path is not None
            else (self.address.host, self.address.port)
        )
        client = library.QMPClient(self.name)
        self._loop = _Shared.take()
        try:
            self._loop.run(client.connect(to), CONNECT_S)
        except BaseException as error:
            _Shared.leave()
            if isinstance(error, Late | TimeoutError):
                raise NoAnswerError(
                    f"{self.name} ({self.address}): no greeting within {CONNECT_S:.0f} s; "
                    "is another client connected to its QMP socket?"
                ) from error
            if isinstance(error, library.QMPError | OSError):
                raise MonitorLostError(f"{self.name} ({self.address}): {_why(error)}") from error
            raise
        self._client = client
        self._listening = self._loop.start(self._listen(client))

    async def _listen(self, client: Any) -> None:
        async for message in client.events:
            stamp = message.get("timestamp", {})
            at_s = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
            data = dict(message.get("data", {}))
            with self._moved:
                self._events.append(Event(str(message["event"]), data, at_s, time.time()))
                self._moved.notify_all()

    @property
    def events(self) -> list[Event]:
        """All events since the connection was made."""
        with self._moved:
            return list(self._events)

    def await_event(
        self, wanted: Callable[[Event], bool], timeout_s: float, since: int = 0
    ) -> Event | None:
        """The first event from number `since` on that is wanted; None if none comes in time."""
        give_up_s = time.monotonic() + timeout_s
        with self._moved:
            while True:
                for event in self._events[since:]:
                    if wanted(event):
                        return event
                left_s = give_up_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._moved.wait(left_s)

    def call(self, command: str, patience_s: float = COMMAND_S, **arguments: Any) -> Any:
        """Carry out a command and return what it returns.

        Raises:
            NoAnswerError: it doesn't answer in time.
            MonitorLostError: QEMU has gone, or the way to it.
            RelocatorError: it refused.
        """
        self.connect()
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self._carry_out(command, self._client.execute(command, given), patience_s)

    def call_until(self, event: str, command: str, patience_s: float = COMMAND_S) -> None:
        """Carry out a command of which an event says as much as the answer, and may come before it.

        QEMU may be at the command still. Errors as of `call`.
        """
        self.connect()
        answer = _or_event(self._client.execute(command), self._client, event)
        self._carry_out(command, answer, patience_s)

    def _carry_out(self, command: str, answer: Coroutine[Any, Any, Any], patience_s: float) -> Any:
        library = _library()
        try:
            return self._loop.run(answer, patience_s)
        except library.ExecuteError as error:
            raise RelocatorError(f"{self.name} refused '{command}': {error}") from error
        except (Late, TimeoutError) as error:
            self.close()
            what = f"no answer to '{command}' within {patience_s:.0f} s"
            raise NoAnswerError(f"{self.name} ({self.address}): {what}") from error
        except (library.QMPError, OSError) as error:
            self.close()
            raise MonitorLostError(
                f"{self.name} ({self.address}): the connection to it was lost"
            ) from error

    def close(self) -> None:
        """Hang up; QEMU goes on."""
        client, self._client = self._client, None
        if client is None:
            return
        with suppress(Exception):  # whatever the end of a dead connection has to say
            self._loop.run(client.disconnect(), CLOSE_S)
        self._listening.cancel()
        _Shared.leave()


async def _or_event(answer: Coroutine[Any, Any, Any], client: Any, name: str) -> None:
    """Until the answer is there, or the event `name`."""
    with client.listener(name) as listener:
        answered, told = asyncio.create_task(answer), asyncio.create_task(listener.get())
        try:
            await asyncio.wait((answered, told), return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
    if answered.done():
        answered.result()


def _why(error: BaseException) -> str:
    """The innermost reason, in a line."""
    cause: BaseException = error
    while (inner := cause.__cause__ or getattr(cause, "exc", None)) is not None:
        cause = inner
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
