"""A small file system of a server's own, that can be full."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from tests.support.servers import Server

_MOST_BYTES = 64 << 20


class Room:
    """A file system of `size_bytes` at `path`, for each server that is started `within` it.

    It is the server's alone (a mount namespace), and ends with it.
    """

    def __init__(self, path: Path, size_bytes: int = 16 << 20) -> None:
        path.mkdir()
        self.path = path
        self._mount = f"mount -t tmpfs -o size={size_bytes} room"

    @property
    def within(self) -> Sequence[str]:
        """What is put in front of the server's command, and becomes it."""
        own = ("--mount",) if os.geteuid() == 0 else ("--mount", "--map-root-user")
        return ("unshare", *own, "sh", "-c", f'{self._mount} "$0" && exec "$@"', str(self.path))

    def seen_from(self, server: Server) -> Path:
        """The same for us, as long as the server runs."""
        return Path(f"/proc/{server.process.pid}/root{self.path}")

    def fill(self, server: Server) -> None:
        """Take what is left."""
        with (self.seen_from(server) / "ballast").open("ab", buffering=0) as file:
            while file.tell() < _MOST_BYTES:
                try:
                    file.write(bytes(4096))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    return
        raise AssertionError(f"{self.path} can't be filled")

    def free(self, server: Server) -> None:
        """There is room again."""
        (self.seen_from(server) / "ballast").unlink()
