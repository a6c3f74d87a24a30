"""A handshake with TLS, on a thread of its own, since libnbd doesn't come back from one.

While the peer is silent libnbd (1.14 to 1.22) asks the socket again and again, as fast as it can,
and doesn't return to whoever called it before the handshake is over, or GnuTLS gives up after 40 s:
no shorter limit would hold, and a link that is cut just then would cost a processor. Here the
socket makes it wait, and is shut down if that is to end. (Not so where a server on this very host
answers before libnbd has returned from connecting; then it is 40 s.)
"""

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Self

from relocator.jobs import start
from relocator.source.sockets import socket_of

#: so long a read or a write of the socket waits, before libnbd asks again
WAIT_S = 1
_LIMITS = (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO)


class Handshake:
    """Calls `go_on`, on a thread, wherever `waits` yields, until that ends; a context.

    Whoever made it leaves the handle alone until it has `ended`.
    """

    def __init__(self, handle: Any, waits: Iterator[None], go_on: Callable[[], object]) -> None:
        self._handle = handle
        self._waits = waits
        self._go_on = go_on
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_over = False
        self._failure: BaseException | None = None
        self.ended = False
        self._ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = start("handshake", self._run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        """End it if it has not ended, and let the socket be as it was."""
        self._is_over = True
        while not self.ended:
            with self._lock, suppress(OSError):
                if self._socket is not None:
                    self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join(0.1)
        self._thread.join()
        os.close(self._ended_fd)
        if self._socket is not None:
            with suppress(OSError):
                _let_wait(self._socket, 0)
            self._socket.close()

    def wait(self, timeout_s: float, wake_fd: int | None) -> None:
        """Wait until it has ended, or `wake_fd` (an eventfd) was written to."""
        poller = select.poll()
        for fd in (self._ended_fd, wake_fd):
            if fd is not None:
                poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll(timeout_s * 1000):
            if fd == wake_fd:
                os.eventfd_read(wake_fd)

    def check(self) -> None:
        """Raise what it has ended with, if that is an error: one of libnbd's, or of `waits`."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            for _ in self._waits:
                if self._is_over:
                    break
                self._attend()
                self._go_on()
        except BaseException as error:
            self._failure = error
        self.ended = True
        os.eventfd_write(self._ended_fd, 1)

    def _attend(self) -> None:
        """The socket that libnbd has now (each of a host's addresses has another) makes it wait."""
        link = socket_of(self._handle.aio_get_fd())
        _let_wait(link, WAIT_S)
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = link


def _let_wait(link: socket.socket, seconds: int) -> None:
    """How long who reads and writes waits for the peer; 0: not at all."""
    link.setblocking(seconds > 0)
    for limit in _LIMITS:
        link.setsockopt(socket.SOL_SOCKET, limit, struct.pack("ll", seconds, 0))
