"""A request that libnbd doesn't send fails by itself; its connection goes on."""

import errno
import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from relocator.source.connection import Connection
from relocator.source.endpoint import Endpoint
from relocator.source.handles import DEFAULT_MAXIMUM_BYTES
from relocator.source.requests import Request
from tests.support.servers import nbdkit

SIZE_BYTES = DEFAULT_MAXIMUM_BYTES + (1 << 20)


class Asker:
    """Asks over one connection, of which it counts how often it was made."""

    def __init__(self, uri: str) -> None:
        self.made = 0
        self.answers: queue.Queue[Request] = queue.Queue()
        self.connection = Connection(Endpoint(uri), "asker")
        self.connection.on_connected = self._count
        self.connection.start()

    def _count(self) -> None:
        self.made += 1

    def ask(self, kind: str, offset: int, length: int) -> None:
        self.connection.submit(Request(kind, offset, length, self.answers.put))

    def told(self) -> tuple[Request, Request]:
        """Two answers, the one that failed first."""
        found = [self.answers.get(timeout=20) for _ in range(2)]
        wrong, right = sorted(found, key=lambda one: one.error is None)
        return wrong, right


@pytest.fixture
def asker(tmp_path: Path) -> Iterator[Asker]:
    with nbdkit(tmp_path, "source", ["pattern", str(SIZE_BYTES)]) as source:
        made = Asker(source.uri)
        yield made
        made.connection.close()
        assert made.answers.empty()


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-4096, 4096), (SIZE_BYTES, 4096), (1 << 63, 4096), (0, SIZE_BYTES + 4096)],
    ids=["below zero", "behind the end", "far behind it", "from the first part on"],
)
def test_a_read_outside_the_disk_fails_and_the_others_are_answered(
    asker: Asker, offset: int, length: int
) -> None:
    asker.ask("read", offset, length)
    asker.ask("read", 4096, 16)
    wrong, right = asker.told()
    assert wrong.error is not None and wrong.error.errno == errno.EINVAL
    assert right.data == (4096).to_bytes(8, "big") + (4104).to_bytes(8, "big")
    assert asker.made == 1


def test_a_status_outside_the_disk_fails_and_the_others_are_answered(asker: Asker) -> None:
    asker.ask("block status", -4096, 4096)
    asker.ask("read", 0, 8)
    wrong, right = asker.told()
    assert wrong.error is not None and wrong.error.errno == errno.EINVAL
    assert right.data == bytes(8) and asker.made == 1
