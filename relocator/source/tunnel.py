"""One process that carries one NBD connection: ssh, or the qemu-nbd that speaks iSCSI.

ssh has one end of a socket pair as its stdin and stdout. qemu-nbd wants a socket to accept from, as
systemd would hand it one (sd_listen_fds(3)): ours has a name only until we have connected to it, so
that nobody else can.

The process belongs to the connection: it is ended with it. Should we be killed instead, ssh sees
the end of its stdin and goes by itself. qemu-nbd would go on waiting if nothing had been said yet,
so the kernel kills it when the thread that started it ends, which is the thread that uses it.
What a process complains of is kept for the error message.
"""

import os
import socket
import subprocess
import tempfile
from pathlib import Path

from relocator.errors import UpstreamError

#: The listening socket is stdin here; it becomes what sd_listen_fds(3) says, for the same process.
_ACTIVATE = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    *("sh", "-c"),
    'exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"',
)


class Tunnel:
    """A running process; `socket_fd` is our end, to be given to libnbd, which then owns it."""

    def __init__(
        self, name: str, argv: list[str], ours: socket.socket, theirs: socket.socket
    ) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (end() closes it)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    argv,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=self._said,
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            self._said.close()
            raise UpstreamError(f"{name} can't be started: {error.strerror}") from error
        self.socket_fd = ours.detach()

    @classmethod
    def on_stdio(cls, argv: list[str]) -> "Tunnel":
        """`argv` speaks NBD on its stdin and stdout.

        Raises:
            UpstreamError: it can't be started.
        """
        return cls(argv[0], argv, *socket.socketpair())

    @classmethod
    def on_listener(cls, argv: list[str]) -> "Tunnel":
        """`argv` accepts one connection from a socket that it inherits.

        Raises:
            UpstreamError: it can't be started.
        """
        ours, listener = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory, "nbd"))
            listener.bind(path)
            listener.listen(1)
            ours.connect(path)
        return cls(argv[0], [*_ACTIVATE, *argv], ours, listener)

    def complaint(self) -> str:
        """The last line that it printed, to be asked once the connection has failed."""
        size = os.fstat(self._said.fileno()).st_size
        tail = os.pread(self._said.fileno(), 1000, max(size - 1000, 0))
        lines = tail.decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def end(self) -> None:
        """End the process; it holds nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        self._said.close()
