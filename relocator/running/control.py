"""The control socket: one JSON object a line each way, over a Unix socket of mode 0600.

    {"verb": "status"}                   -> {"ok": true, "role": "proxy", ...}
    {"verb": "set", "rate": "50M"}       -> {"ok": true, ...}
    {"verb": "unseal"}                   -> {"ok": false, "error": "..."}

Every verb answers with the status after it. The server binds before nbdkit forks, so that a bad
path is reported on the terminal, and serves from threads started after.
"""

import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relocator.errors import ConfigError, RelocatorError

Call = Callable[[str, dict[str, Any]], dict[str, Any]]
_MOST_LINE_BYTES = 1 << 16


def answer(call: Call, line: bytes) -> dict[str, Any]:
    """Carry out one request line; never raises for what the client got wrong."""
    try:
        request = json.loads(line)
    except ValueError as error:
        return {"ok": False, "error": f"not a line of JSON: {error}"}
    if not isinstance(request, dict) or not isinstance(request.get("verb"), str):
        return {"ok": False, "error": 'write an object with a verb, such as {"verb": "status"}'}
    verb = request.pop("verb")
    try:
        return {"ok": True, **call(verb, request)}
    except (RelocatorError, OSError) as error:
        return {"ok": False, "error": str(error)}


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, ControlServer)
        try:
            while line := self.rfile.readline(_MOST_LINE_BYTES):
                reply = json.dumps(answer(server.call, line)) + "\n"
                self.wfile.write(reply.encode())
        except (BrokenPipeError, ConnectionResetError):
            return  # the client has gone, and its answer with it


def remove_stale(path: Path, key: str) -> None:
    """Remove a Unix socket that nobody listens on.

    Raises:
        ConfigError: something else is in the way; `key` is the parameter that named it.
    """
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"{key}={path}: exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"{key}={path}: another process listens there")


class ControlServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves `call` on the socket at `path`."""

    daemon_threads = True
    request_queue_size = socket.SOMAXCONN  # 5 by default: the sixth client at once is refused
    block_on_close = False

    def __init__(self, path: Path, call: Call) -> None:
        self.call = call
        self._path = path
        self._serving = False
        remove_stale(path, "control")
        previous = os.umask(0o177)
        try:
            super().__init__(str(path), _Handler)
        except OSError as error:
            raise ConfigError(
                f"control={path}: {error.strerror or error}; give a path in a directory that exists"
            ) from error
        finally:
            os.umask(previous)

    def move_to(self, path: Path) -> None:
        """Rename the socket to `path`, in one step replacing that of another server."""
        self._path.rename(path)
        self._path = path

    def start(self) -> None:
        """Begin to serve; after nbdkit has forked."""
        self._serving = True
        threading.Thread(target=self.serve_forever, name="control", daemon=True).start()

    def stop(self) -> None:
        """Stop serving and remove the socket."""
        if self._serving:
            self.shutdown()
        self.server_close()
        self._path.unlink(missing_ok=True)
