"""Sockets of other hosts made to appear on this one, each by an ssh that ends with the command.

The ssh processes are ended with the block; should this process be killed instead, the kernel ends
them (`setpriv --pdeathsig`). They are in a session of their own, so Ctrl-C doesn't reach them: the
way back needs them still.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from relocator.errors import RelocatorError
from relocator.moving.address import Address

CONNECT_S = 20.0


class Reach:
    """Gives the local path of a Unix socket, wherever it is."""

    def __init__(self, directory: Path, ssh_options: Sequence[str] = ()) -> None:
        self._ssh_options = ssh_options
        self._directory = directory
        self._running: list[subprocess.Popen[bytes]] = []
        self._forwarded: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}

    def path(self, address: Address) -> str:
        """Where the socket can be connected to on this host.

        Raises:
            RelocatorError: ssh can't forward it.
        """
        assert address.path is not None
        if address.ssh is None:
            return address.path
        known = self._forwarded.get(address.text)
        if known is not None and known[1].poll() is None:
            return known[0]
        local = self._directory / str(len(self._running))
        said = local.with_suffix(".log")
        argv = [
            "setpriv",
            "--pdeathsig",
            "TERM",
            *address.forward_command(str(local), self._ssh_options),
        ]
        with said.open("wb") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._running.append(process)
        give_up_s = time.monotonic() + CONNECT_S
        while not local.exists():
            if process.poll() is not None or time.monotonic() > give_up_s:
                lines = said.read_text(errors="replace").strip().splitlines() or ["no answer"]
                raise RelocatorError(f"{address}: ssh can't forward the socket: {lines[-1]}")
            time.sleep(0.02)
        self._forwarded[address.text] = str(local), process
        return str(local)

    def end(self) -> None:
        """End every ssh."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
                continue
            process.kill()
            process.wait()


@contextmanager
def reaching(ssh_options: Sequence[str] = ()) -> Iterator[Reach]:
    """What reaches sockets within the block."""
    with tempfile.TemporaryDirectory(prefix="relocator-") as directory:
        reach = Reach(Path(directory), ssh_options)
        try:
            yield reach
        finally:
            reach.end()
