"""Sockets of other hosts made to appear on this one, each by an ssh that ends with the command.

The ssh processes are ended with the block, or by the kernel should this process be killed. They are
in a session of their own, so Ctrl-C doesn't reach them: the way back needs them still.
"""

import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from relocator.errors import RelocatorError
from relocator.moving.address import Address
from relocator.processes import Process

CONNECT_S = 20.0


class Reach:
    """Gives the local path of a Unix socket, wherever it is; anew if its ssh has ended meanwhile.

    The kernel ends what a thread has started with that thread, so one does it for all who ask.
    """

    def __init__(self, directory: Path, ssh_options: Sequence[str] = ()) -> None:
        self._ssh_options = ssh_options
        self._directory = directory
        self._numbers = count()
        self._starter = ThreadPoolExecutor(1, "ssh")
        self._lock = threading.Lock()
        #: of each address: one at a time makes it appear
        self._turns: dict[str, threading.Lock] = {}
        self._forwarded: dict[str, tuple[Path, Process]] = {}

    def path(self, address: Address) -> str:
        """Where the socket can be connected to on this host.

        Raises:
            RelocatorError: ssh can't forward it.
        """
        assert address.path is not None
        if address.ssh is None:
            return address.path
        with self._lock:
            turn = self._turns.setdefault(address.text, threading.Lock())
        with turn:
            known = self._forwarded.get(address.text)
            if known is None or known[1].popen.poll() is not None:
                self._forget(address)
                known = self._starter.submit(self._start, address).result()
            local, process = known
            try:
                process.await_ready(local.exists, CONNECT_S)
            except RelocatorError as error:
                self._forget(address)
                raise RelocatorError(f"{address}: ssh can't forward the socket: {error}") from error
            return str(local)

    def _start(self, address: Address) -> tuple[Path, Process]:
        local = self._directory / str(next(self._numbers))
        process = Process(address.forward_command(str(local), self._ssh_options), "TERM")
        self._forwarded[address.text] = local, process
        return local, process

    def _forget(self, address: Address) -> None:
        if (known := self._forwarded.pop(address.text, None)) is not None:
            known[1].end()

    def end(self) -> None:
        """End every ssh."""
        self._starter.shutdown()
        while self._forwarded:
            self._forwarded.popitem()[1][1].end()


@contextmanager
def reaching(ssh_options: Sequence[str] = ()) -> Iterator[Reach]:
    """What reaches sockets within the block."""
    with tempfile.TemporaryDirectory(prefix="relocator-") as directory:
        reach = Reach(Path(directory), ssh_options)
        try:
            yield reach
        finally:
            reach.end()
