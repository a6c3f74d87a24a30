"""Packets gather before a thread wakes: what the kernel makes of the low-water mark."""

import select
import socket
from collections.abc import Iterator

import pytest

from relocator.source.connection import GATHER_BYTES
from relocator.source.sockets import LowWater


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as near, server.accept()[0] as far:
            yield near, far


def readable(end: socket.socket, timeout_s: float = 0.0) -> bool:
    return bool(select.select([end], [], [], timeout_s)[0])


def test_less_than_the_mark_wakes_nobody_until_it_is_taken_back(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = ends
    with LowWater(near.fileno()) as low_water:
        low_water.set(GATHER_BYTES)
        far.sendall(bytes(GATHER_BYTES - 1))
        assert not readable(near, 0.05)
        far.sendall(b"x")
        assert readable(near, 10)
        near.recv(GATHER_BYTES, socket.MSG_WAITALL)
        far.sendall(b"the rest of a reply")
        assert not readable(near, 0.05)
        low_water.set(1)
        assert readable(near, 10)


def test_the_end_of_a_connection_wakes_whatever_the_mark(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = ends
    with LowWater(near.fileno()) as low_water:
        low_water.set(GATHER_BYTES)
        far.sendall(b"a little")
        far.close()
        assert readable(near, 10)
