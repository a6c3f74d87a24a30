"""The memory copy of a live migration: one TCP stream from VM host to VM host over the WAN.

Only its traffic matters here, so what it carries is noise made once. It ends when the last byte
has arrived, as the switch may not begin before.
"""

import random
import socket
import threading
import time

from testbed.hosts.supervise import in_namespace
from testbed.network.topology import ADDRESS, Sites

_PORT = 4444
_PIECE_BYTES = 256 * 1024


class MemoryCopy:
    """A running copy of `size_bytes`; `wait` ends it and gives its seconds."""

    def __init__(self, sites: Sites, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._failure: BaseException | None = None
        address = (ADDRESS["vm_dst-mem"], _PORT)
        self._listener = in_namespace(sites.pids["vm_dst"], lambda: socket.create_server(address))
        self._sender = in_namespace(sites.pids["vm_src"], socket.socket)
        self._start_s = time.monotonic()
        self._end_s = self._start_s
        self._threads = [
            threading.Thread(target=self._guarded, args=(action,), name=action.__name__)
            for action in (self._receive, self._send)
        ]
        for thread in self._threads:
            thread.start()

    def _guarded(self, action: object) -> None:
        try:
            assert callable(action)
            action()
        except BaseException as error:
            self._failure = error
            self.close()

    def _send(self) -> None:
        piece = memoryview(random.Random(0).randbytes(_PIECE_BYTES))
        self._sender.connect((ADDRESS["vm_dst-mem"], _PORT))
        left = self.size_bytes
        while left > 0:
            left -= self._sender.send(piece[: min(left, _PIECE_BYTES)])
        self._sender.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        buffer = bytearray(_PIECE_BYTES)
        left = self.size_bytes
        connection, _ = self._listener.accept()
        with connection:
            while left > 0:
                received = connection.recv_into(buffer)
                if received == 0:
                    raise ConnectionError(f"the memory copy ended {left} bytes early")
                left -= received
        self._end_s = time.monotonic()

    def running(self) -> bool:
        """Whether bytes are still to come; raises what went wrong."""
        if self._failure is not None:
            raise RuntimeError(f"the memory copy failed: {self._failure}") from self._failure
        return any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Closes the sockets; the threads end then, one way or the other."""
        for one in (self._sender, self._listener):
            one.close()

    def finish(self) -> float:
        """Seconds from the first byte to the last."""
        for thread in self._threads:
            thread.join()
        self.running()
        self.close()
        return self._end_s - self._start_s
