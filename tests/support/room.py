"""A small file system of a server's own, that can be full."""

import errno
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import Server, wait_for

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

    @contextmanager
    def kept(self) -> Iterator[Sequence[str]]:
        """The same for servers that come and go: all are within one."""
        with subprocess.Popen([*self.within, "sleep", "infinity"]) as holder:
            try:
                there = Path(f"/proc/{holder.pid}")
                wait_for((there / f"root{self.path}").is_mount, "the file system")
                own = (
                    ()
                    if os.geteuid() == 0
                    else ("--preserve-credentials", f"--user={there}/ns/user")
                )
                yield ("nsenter", *own, f"--mount={there}/ns/mnt")
            finally:
                holder.kill()

    def seen_from(self, server: Server) -> Path:
        """The same for us, as long as the server runs."""
        return Path(f"/proc/{server.process.pid}/root{self.path}")

    def fill(self, server: Server, *, all_of_it: bool = True) -> None:
        """Take what is left, with `all_of_it` also what stores keep back."""
        for spare in self.seen_from(server).glob("*/spare") if all_of_it else ():
            spare.unlink()
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
