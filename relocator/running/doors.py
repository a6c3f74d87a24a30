"""Who may use the exports that are for other sites' relocators: to seal the disk, say.

The disk itself is open to whoever reaches the port, as with any NBD server; so are its blocks. All
else wants the key, if there is one (see source/key.py). Without a key it is open as long as only
this host's own users can reach the port, by a Unix socket or a loopback address (also that of an
ssh tunnel); and shut if other machines can.

What is refused is told: a relocator that is shut out must not be taken for a server that has
nothing but blocks, or its disk would be taken over without being sealed. NBD's TLS can't stand in
for the key: nbdkit 1.32 doesn't tell a Python plugin the name in a client's certificate.
"""

import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from relocator.source.key import Key, Lock
from relocator.source.sockets import keep_alive, socket_of

_NEEDS_KEY = (
    "it needs a key, and none is set there: other machines can reach its port. Give key=PATH at "
    "both sites (`relocator keygen PATH` makes one), or let it listen on a Unix socket or loopback"
)
_NOT_PROVEN = "it needs its key: give key=PATH, with a copy of the file that it uses"
_WRONG = "the key is another one than its own; give key=PATH with a copy of the file that it uses"


class Doors:
    """Decides by the key, or by where this process listens once `look` has been called."""

    def __init__(self, key: Key | None) -> None:
        self._lock = None if key is None else Lock(key)
        self._afar: list[str] = []

    def look(self) -> None:
        """See who can reach this process, which listens by now; says so if that shuts doors.

        Clients that come from now on are let go when they have gone without a word.
        """
        for one in _listening():
            keep_alive(one)
        self._afar = reached_from_afar()
        if self._lock is None and self._afar:
            where = " and ".join(self._afar)
            print(
                f"relocator: other machines can reach {where}, and no key is set: only the disk's "
                "blocks are served there, and no move is possible. Give key=PATH at both sites "
                "(`relocator keygen PATH` makes one), or listen on a Unix socket or loopback",
                file=sys.stderr,
                flush=True,
            )

    def describe(self) -> str:
        """The description of the export `control`."""
        return "" if self._lock is None else self._lock.describe()

    def admit(self, name: str) -> tuple[str, str | None]:
        """The export that is asked for by `name`, and why it is refused (None: it isn't)."""
        if name == "":
            return name, None
        if self._lock is None:
            wanted = name.split("/", 3)[-1] if name.startswith("key/") else name
            return wanted, _NEEDS_KEY if self._afar else None
        wanted, proven = self._lock.opens(name)
        if proven:
            return wanted, None
        return wanted, _NOT_PROVEN if wanted == name else _WRONG


def _listening() -> Iterator[socket.socket]:
    """The sockets on which this process listens, each closed again after use."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # one that was only open while the directory was read
            if not stat.S_ISSOCK(entry.stat().st_mode):
                continue
            with socket_of(int(entry.name)) as one:
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    yield one


def reached_from_afar() -> list[str]:
    """The addresses on which this process listens and that other machines can reach."""
    afar = (one.getsockname()[:2] for one in _listening() if not _is_local(one))
    return sorted({"{}:{}".format(*address) for address in afar})


def _is_local(one: socket.socket) -> bool:
    if one.family == socket.AF_UNIX:
        return True
    if one.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return ip_address(one.getsockname()[0].partition("%")[0]).is_loopback
