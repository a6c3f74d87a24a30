"""The other end of the control socket: one verb, one answer (see running/control.py)."""

import json
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from relocator.errors import RelocatorError

_AGAIN_S = 0.05
_SHOWN = 40


class Client:
    """Talks to a running plugin; `name` is what errors call its socket, if not by its path.

    `server` is what is to be running there, if not a plugin.

    Raises (from `call`):
        RelocatorError: the plugin refused, can't be reached, or isn't one.
    """

    def __init__(
        self,
        path: os.PathLike[str] | str,
        name: str | None = None,
        server: str = "the plugin",
    ) -> None:
        self.path = os.fspath(path)
        self.name = name or self.path
        self._server = server
        #: at most one connection, made before it is needed
        self._ready: list[socket.socket] = []

    def connect(self, patience_s: float | None = 60.0) -> None:
        """Connect now, for the next call: who lets a guest stand still for that saves the time.

        A connection that the plugin has ended by then, as it does after a minute, is made anew.

        Raises:
            RelocatorError: the plugin can't be reached.
        """
        with self._telling():
            self._ready.append(self._connected(patience_s))

    def call(self, verb: str, patience_s: float | None = 60.0, **arguments: Any) -> dict[str, Any]:
        """Send one verb and return its answer; None waits for it without limit."""
        request = json.dumps({"verb": verb, **arguments}) + "\n"
        with self._telling(), self._connected(patience_s) as link, link.makefile("rb") as lines:
            link.sendall(request.encode())
            line = lines.readline()
        reply = self._understood(line)
        if not reply.pop("ok", False):
            raise RelocatorError(str(reply.get("error", "refused without a reason")))
        return reply

    def _understood(self, line: bytes) -> dict[str, Any]:
        """The answer in a line; RelocatorError if it was cut, or is none of a plugin's."""
        if not line:
            raise RelocatorError(f"control socket {self.name}: closed without an answer")
        if not line.endswith(b"\n"):
            raise RelocatorError(f"control socket {self.name}: closed in the midst of an answer")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            said = ascii(line[:_SHOWN].decode(errors="replace").rstrip())
            raise RelocatorError(
                f"control socket {self.name}: answers {said}; is it the socket of control=?"
            )
        return reply

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong on the socket, in our words."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: no file can have that name
            why = error.strerror if isinstance(error, OSError) else None
            raise RelocatorError(
                f"control socket {self.name}: {why or error}; is {self._server} running?"
            ) from error

    def _connected(self, patience_s: float | None) -> socket.socket:
        """The connection that is ready, or one made now."""
        while self._ready:
            link = self._ready.pop()
            if not select.select([link], [], [], 0)[0]:  # else it was hung up on
                link.settimeout(patience_s)
                return link
            link.close()
        link = socket.socket(socket.AF_UNIX)
        try:
            link.settimeout(patience_s)
            self._connect(link, patience_s)
        except BaseException:
            link.close()
            raise
        return link

    def _connect(self, link: socket.socket, patience_s: float | None) -> None:
        """Connect, and wait where more clients are waiting than the kernel queues."""
        give_up_s = None if patience_s is None else time.monotonic() + patience_s
        while True:
            try:
                return link.connect(self.path)
            except BlockingIOError:
                if give_up_s is not None and time.monotonic() >= give_up_s:
                    raise
            time.sleep(_AGAIN_S)
