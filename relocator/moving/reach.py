"""Sockets of other hosts made to appear on this one, each by an ssh that ends with the command.

The ssh processes are ended with the block, or by the kernel should this process be killed. They are
in a session of their own, so Ctrl-C doesn't reach them: the way back needs them still.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from relocator.errors import RelocatorError
from relocator.moving.address import Address
from relocator.processes import Process

CONNECT_S = 20.0


class Reach:
    """Gives the local path of a Unix socket, wherever it is."""

    def __init__(self, directory: Path, ssh_options: Sequence[str] = ()) -> None:
        self._ssh_options = ssh_options
        self._directory = directory
        self._forwarded: dict[str, tuple[Path, Process]] = {}
        self._running: list[Process] = []

    def path(self, address: Address) -> str:
        """Where the socket can be connected to on this host.

        Raises:
            RelocatorError: ssh can't forward it.
        """
        assert address.path is not None
        if address.ssh is None:
            return address.path
        known = self._forwarded.get(address.text)
        if known is not None and known[1].popen.poll() is None:
            return str(known[0])
        local = self._directory / str(len(self._running))
        process = Process(address.forward_command(str(local), self._ssh_options), "TERM")
        self._running.append(process)
        try:
            process.await_ready(local.exists, CONNECT_S)
        except RelocatorError as error:
            raise RelocatorError(f"{address}: ssh can't forward the socket: {error}") from error
        self._forwarded[address.text] = local, process
        return str(local)

    def end(self) -> None:
        """End every ssh."""
        while self._running:
            self._running.pop().end()


@contextmanager
def reaching(ssh_options: Sequence[str] = ()) -> Iterator[Reach]:
    """What reaches sockets within the block."""
    with tempfile.TemporaryDirectory(prefix="relocator-") as directory:
        reach = Reach(Path(directory), ssh_options)
        try:
            yield reach
        finally:
            reach.end()
