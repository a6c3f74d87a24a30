"""One ssh process that carries one NBD connection, on a socket pair.

The process belongs to the connection: it is ended with it, and should we be killed instead, ssh
sees the end of its stdin and goes by itself. What it complains of is kept for the error message.
"""

import os
import socket
import subprocess
import tempfile

from relocator.errors import UpstreamError


class Tunnel:
    """A running ssh; `socket_fd` is our end, to be given to libnbd, which then owns it."""

    def __init__(self, argv: list[str]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (end() closes it)
        ours, theirs = socket.socketpair()
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
            raise UpstreamError(f"ssh can't be started: {error.strerror}") from error
        self.socket_fd = ours.detach()

    def complaint(self) -> str:
        """The last line that ssh printed, to be asked once the connection has failed."""
        size = os.fstat(self._said.fileno()).st_size
        tail = os.pread(self._said.fileno(), 1000, max(size - 1000, 0))
        lines = tail.decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def end(self) -> None:
        """End the process; it holds nothing that could be lost."""
        self._process.kill()
        self._process.wait()
        self._said.close()
