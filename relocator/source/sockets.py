"""The sockets beneath NBD connections, at either end: what the kernel is told and asked of them."""

import os
import socket
import sys
from contextlib import suppress

_RTT_AT = 68  # tcpi_rtt in the kernel's struct tcp_info (linux/tcp.h), microseconds
#: A peer of which nothing is heard for 5 minutes is gone; asking each minute also keeps an idle
#: connection in the tables of the routers between. A link may be cut for minutes: not sooner.
_ALIVE = {
    socket.TCP_KEEPIDLE: 60,
    socket.TCP_KEEPINTVL: 30,
    socket.TCP_KEEPCNT: 8,
}


def socket_of(fd: int) -> socket.socket:
    """A socket by its file descriptor, which stays open when this is closed."""
    return socket.socket(fileno=os.dup(fd))


def keep_alive(one: socket.socket) -> None:
    """Let the kernel notice that a peer has gone without a word; TCP only.

    What a listening socket accepts from now on inherits it.
    """
    if one.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # it is another protocol's
            for option, value in _ALIVE.items():
                one.setsockopt(socket.IPPROTO_TCP, option, value)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class LowWater:
    """How many bytes a connected socket must have before it is called readable."""

    def __init__(self, fd: int) -> None:
        self._socket = socket_of(fd)
        self._bytes = 1

    def __enter__(self) -> "LowWater":
        return self

    def __exit__(self, *_failure: object) -> None:
        self._socket.close()

    def set(self, count: int) -> None:
        """Change it; a system call only if it is another one."""
        if count != self._bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._bytes = count


def round_trip_s(fd: int) -> float:
    """The smoothed round trip of a connection in seconds; 0.0 where it is no TCP's."""
    with suppress(OSError), socket_of(fd) as link:
        told = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + 4)
        return int.from_bytes(told[_RTT_AT:], sys.byteorder) / 1e6
    return 0.0
