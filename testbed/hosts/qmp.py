"""QEMU's monitor, one command at a time; events are kept until they are asked for."""

import asyncio
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

from testbed.hosts.supervise import ProcessError


class Monitor:
    """A connection to a QEMU that may still be starting; ProcessError if it refuses or goes."""

    def __init__(self, path: Path, timeout_s: float = 60.0) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient(path.name)
        self._events: list[dict[str, Any]] = []  # come, and not asked for yet
        self.end = weakref.finalize(self, _end, self._loop, self._client)
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                self._loop.run_until_complete(self._client.connect(str(path)))
                return
            except QMPError as error:
                if time.monotonic() > deadline_s:
                    self.close()
                    raise ProcessError(f"QEMU's monitor at {path}: {error}") from error
                time.sleep(0.05)

    def call(self, command: str, **arguments: Any) -> Any:
        """The command's return value; a `_` in an argument's name stands for QEMU's `-`."""
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return self._loop.run_until_complete(self._client.execute(command, given))
        except (ExecuteError, QMPError) as error:
            raise ProcessError(f"QMP {command}: {error}") from error

    def wait_for(self, event: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """The data of the next event of that name, past or to come."""
        return dict(self._next(event, timeout_s).get("data", {}))

    def wait_for_time(self, event: str, timeout_s: float = 60.0) -> float:
        """When QEMU says that the event was: seconds of its host's wall clock."""
        at = self._next(event, timeout_s)["timestamp"]
        return float(at["seconds"]) + float(at["microseconds"]) / 1e6

    def _next(self, event: str, timeout_s: float) -> dict[str, Any]:
        for kept in self._events:
            if kept["event"] == event:
                self._events.remove(kept)
                return kept

        async def next_one() -> dict[str, Any]:
            while True:
                message = dict(await self._client.events.get())
                if message["event"] == event:
                    return message
                self._events.append(message)

        try:
            return self._loop.run_until_complete(asyncio.wait_for(next_one(), timeout_s))
        except TimeoutError as late:
            raise ProcessError(f"QEMU: no {event} within {timeout_s:g} s") from late

    def close(self) -> None:
        """Ends the connection; QEMU may have done so before."""
        self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _end(loop: asyncio.AbstractEventLoop, client: QMPClient) -> None:
    """Also when a monitor is forgotten: its tasks must not outlive it."""
    with suppress(QMPError, OSError):
        loop.run_until_complete(client.disconnect())
    loop.close()
