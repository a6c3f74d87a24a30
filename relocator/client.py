"""The other end of the control socket: one verb, one answer (see running/control.py)."""

import json
import os
import socket
import time
from typing import Any

from relocator.errors import RelocatorError

_AGAIN_S = 0.05
_SHOWN = 40


class Client:
    """Talks to a running plugin; `name` is what errors call its socket, if not by its path.

    Raises (from `call`):
        RelocatorError: the plugin refused, can't be reached, or isn't one.
    """

    def __init__(self, path: os.PathLike[str] | str, name: str | None = None) -> None:
        self.path = os.fspath(path)
        self.name = name or self.path

    def call(self, verb: str, patience_s: float | None = 60.0, **arguments: Any) -> dict[str, Any]:
        """Send one verb and return its answer; None waits for it without limit."""
        request = json.dumps({"verb": verb, **arguments}) + "\n"
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(patience_s)
                self._connect(link, patience_s)
                link.sendall(request.encode())
                with link.makefile("rb") as lines:
                    line = lines.readline()
        except (OSError, ValueError) as error:  # ValueError: no file can have that name
            why = error.strerror if isinstance(error, OSError) else None
            raise RelocatorError(
                f"control socket {self.name}: {why or error}; is the plugin running?"
            ) from error
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
