"""The other end of the control socket: one verb, one answer (see running/control.py)."""

import json
import os
import socket
from typing import Any

from relocator.errors import RelocatorError


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
                link.connect(self.path)
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
