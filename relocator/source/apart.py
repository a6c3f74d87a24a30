"""A connection for what the source leaves unanswered, so that nothing else waits behind it.

It is up only while there is something to ask for, and a little longer: a server may bear few
clients.
"""

import os
import select
import time
from typing import Any

from relocator.source.connection import Connection
from relocator.source.sockets import LowWater

LINGER_S = 2.0


class Apart(Connection):
    """Connects once it has a request, and hangs up when it has none any more."""

    _busy_s = 0.0

    def start(self) -> None:
        """Start the thread, unless that was done before."""
        if self._thread.ident is None:
            super().start()

    # Below this line everything runs on the connection's own thread.

    def _connect(self) -> tuple[Any, LowWater]:
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        while not self._queue:
            self._check_open()
            poller.poll()
            os.eventfd_read(self._wake_fd)
        self._busy_s = time.monotonic()
        return super()._connect()

    def _deliver(self) -> None:
        if self._queue or self._in_flight or self._finished:
            self._busy_s = time.monotonic()
        super()._deliver()
        self._lost |= time.monotonic() - self._busy_s > LINGER_S
