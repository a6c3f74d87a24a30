"""The other end of the control socket: one verb, one answer (see running/control.py)."""

import json
import os
import socket
import time
from typing import Any

from relocator.errors import RelocatorError

_AGAIN_S = 0.05


class Client:
    """Talks to a running plugin.

    Raises (from `call`):
        RelocatorError: the plugin refused, or can't be reached.
    """

    def __init__(self, path: os.PathLike[str] | str) -> None:
        self.path = os.fspath(path)

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
                f"control socket {self.path}: {why or error}; is the plugin running?"
            ) from error
        if not line:
            raise RelocatorError(f"control socket {self.path}: closed without an answer")
        reply: dict[str, Any] = json.loads(line)
        if not reply.pop("ok", False):
            raise RelocatorError(str(reply.get("error", "refused without a reason")))
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
