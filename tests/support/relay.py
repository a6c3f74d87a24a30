"""A link between two Unix sockets that can be cut: who is connected, or comes, is hung up on."""

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Relay:
    """Passes what arrives at `path` on to the server at `to`; a thread a connection.

    `seen` is called with what clients say, before it is passed on; `takes` with the number of each
    that comes, from 1 on: whether it is passed on at all.
    """

    def __init__(
        self,
        path: Path,
        to: Path,
        seen: Callable[[bytes], None],
        takes: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._to = to
        self._seen = seen
        self._takes = takes
        self._whole = True
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._threads[0].start()
        self.uri = f"nbd+unix:///?socket={path}"

    def cut(self) -> None:
        """From now on nothing passes."""
        with self._lock:
            self._whole = False
            for end in self._ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._ends.clear()

    @property
    def newest(self) -> list[socket.socket]:
        """Both ends of what passes since last."""
        with self._lock:
            return self._ends[-2:]

    def sever(self, ends: list[socket.socket]) -> None:
        """Hang up on these two, and on all who come from now on."""
        with self._lock:
            self._whole = False
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """As before."""
        with self._lock:
            self._whole = True

    def close(self) -> None:
        """No more of it."""
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self._takes(len(self._threads)):
                    self._threads.append(threading.Thread(target=near.close))
                    self._threads[-1].start()
                    continue
                thread = threading.Thread(target=self._serve, args=(near,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, near: socket.socket) -> None:
        with near, socket.socket(socket.AF_UNIX) as far, suppress(OSError):
            with self._lock:
                if not self._whole:
                    return
                far.connect(str(self._to))
                self._ends += [near, far]
            try:
                self._pass_on(near, far)
            finally:
                with self._lock:
                    self._ends = [end for end in self._ends if end not in (near, far)]

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        while True:
            for end in select.select(list(other), [], [])[0]:
                if not (data := end.recv(1 << 16)):
                    return
                if end is near:
                    self._seen(data)
                other[end].sendall(data)


@contextmanager
def relay(
    path: Path,
    to: Path,
    seen: Callable[[bytes], None] = lambda _: None,
    takes: Callable[[int], bool] = lambda _: True,
) -> Iterator[Relay]:
    """A link that is whole until it is cut."""
    made = Relay(path, to, seen, takes)
    try:
        yield made
    finally:
        made.close()
