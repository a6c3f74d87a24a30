"""A store over an upstream whose replies come when the test says, and the disk over both."""

import random
import threading
from pathlib import Path
from typing import Any, cast

from relocator.copying.heat import Heat
from relocator.copying.hydration import Hydration
from relocator.copying.recent import Recent
from relocator.errors import RelocatorError
from relocator.running.disk import Disk
from relocator.running.lifecycle import Lifecycle
from relocator.source.upstream import Upstream
from relocator.store.store import Store
from tests.support.fake_upstream import FakeUpstream
from tests.support.servers import wait_for
from tests.support.stores import make_store

BLOCK = 4096
BLOCKS = 16
DATA = random.Random(1).randbytes(BLOCK * BLOCKS)


class _Unheard:
    """The end of a fetch, for which nothing is paced here."""

    def __call__(self, error: RelocatorError | None) -> None:
        """It is over."""

    def stuck(self) -> None:
        """It stays out."""


unheard = _Unheard()


class Bench:
    """A store, a fake upstream, and the disk over both."""

    def __init__(self, directory: Path, size_bytes: int = len(DATA)) -> None:
        self.store: Store = make_store(directory / "store", size_bytes, BLOCK)
        self.upstream = FakeUpstream(DATA)
        self.completed = threading.Event()
        self.hydration = Hydration(
            self.store,
            cast(Upstream, self.upstream),
            on_demand=lambda _length: unheard,
            on_complete=self.completed.set,
        )
        heat = Heat(size_bytes, lambda: 0.0)
        recent = Recent(lambda: 0.0)
        self.disk = Disk(self.store, Lifecycle(self.store), heat, recent, hydration=self.hydration)

    def read(self, first: int, end: int) -> bytes:
        buffer = bytearray((end - first) * BLOCK)
        self.disk.read_into(memoryview(buffer), first * BLOCK)
        return bytes(buffer)

    def in_thread(self, call: Any, *arguments: Any) -> "Call":
        return Call(call, arguments)


class Call(threading.Thread):
    """A call on a thread of its own; `result` raises what it raised."""

    def __init__(self, call: Any, arguments: tuple[Any, ...]) -> None:
        super().__init__(daemon=True)
        self._call, self._arguments = call, arguments
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._call(*self._arguments)
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(10)
        assert not self.is_alive(), "still waiting"
        if self._error is not None:
            raise self._error
        return self._value


def waiting(bench: Bench, count: int) -> None:
    wait_for(lambda: len(bench.upstream.waiting) == count, f"{count} requests upstream")
