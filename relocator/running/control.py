"""The control socket: one JSON object a line each way, over a Unix socket of mode 0600.

    {"verb": "status"}                   -> {"ok": true, "role": "proxy", ...}
    {"verb": "set", "rate": "50M"}       -> {"ok": true, ...}
    {"verb": "unseal"}                   -> {"ok": false, "error": "..."}

Every verb answers with the status after it. The server binds before nbdkit forks, so that a bad
path is reported on the terminal, and serves from threads started after.

Clients cost a thread and a file descriptor each, which the store and the guests need too: so at
most `MOST_CLIENTS` are served at once. Others wait; where all places are taken, who has been silent
for a while, or doesn't take its answer, gives up its place.
"""

import json
import os
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from relocator.errors import ConfigError, RelocatorError

Call = Callable[[str, dict[str, Any]], dict[str, Any]]
#: `client`: whose request this thread carries out
_here = threading.local()
MOST_CLIENTS = 100
MOST_LINE_BYTES = 1 << 16
#: so long a client may be silent, or leave its answer, where others want its place; and elsewhere
SILENT_S, IDLE_S = 2.0, 60.0
#: so long a client waits for a place where all are busy
PATIENCE_S = 5.0


def answer(call: Call, line: bytes) -> dict[str, Any]:
    """Carry out one request line; never raises for what the client got wrong."""
    try:
        request = json.loads(line)
    except ValueError as error:
        return refusal(f"not a line of JSON: {error}")
    except RecursionError:
        return refusal("not a line of JSON: brackets within brackets, too many of them")
    if not isinstance(request, dict) or not isinstance(request.get("verb"), str):
        return refusal('write an object with a verb, such as {"verb": "status"}')
    verb = request.pop("verb")
    try:
        return {"ok": True, **call(verb, request)}
    except (RelocatorError, OSError) as error:
        return refusal(str(error))


def refusal(why: str) -> dict[str, Any]:
    """The answer of a request that is refused."""
    return {"ok": False, "error": why}


def _line(reply: dict[str, Any]) -> bytes:
    return (json.dumps(reply) + "\n").encode()


def asker_has_gone() -> bool:
    """Whether the client whose request this thread carries out has hung up, so nobody waits for it.

    One that has only ended its own side, as `nc -N` does, still waits for its answer.
    """
    client: socket.socket | None = getattr(_here, "client", None)
    if client is None:
        return False
    events = select.poll()
    events.register(client, 0)  # POLLHUP and POLLERR are always told
    return bool(events.poll(0))


class Clients:
    """Who is being served: at most `most` at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        #: since when each has been silent; None while a request of its is carried out
        self._silent_since: dict[socket.socket, float | None] = {}

    def admit(self, client: socket.socket) -> bool:
        """Wait for a place, somebody silent's if need be; False if all are busy for too long."""
        give_up_s = time.monotonic() + PATIENCE_S
        with self._changed:
            while len(self._silent_since) >= self._most:
                if time.monotonic() >= give_up_s:
                    return False
                self._dismiss_locked()
                self._changed.wait(0.1)
            self._silent_since[client] = time.monotonic()
        return True

    def _dismiss_locked(self) -> None:
        """Hang up on who has been silent for longest, if that is long; it leaves by itself then."""
        silent = {one: since for one, since in self._silent_since.items() if since is not None}
        longest = min(silent, key=silent.__getitem__, default=None)
        if longest is None or time.monotonic() - silent[longest] < SILENT_S:
            return
        self._silent_since[longest] = None
        with suppress(OSError):  # it has gone by itself
            longest.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def busy(self, client: socket.socket) -> Iterator[None]:
        """A request of the client's is carried out: whatever that takes, it keeps its place."""
        self._note(client, None)
        try:
            yield
        finally:
            self._note(client, time.monotonic())

    def _note(self, client: socket.socket, since: float | None) -> None:
        with self._changed:
            if client in self._silent_since:
                self._silent_since[client] = since

    def leave(self, client: socket.socket) -> None:
        """The client has gone."""
        with self._changed:
            self._silent_since.pop(client, None)
            self._changed.notify()


class _Handler(socketserver.StreamRequestHandler):
    timeout = IDLE_S

    def handle(self) -> None:
        server = self.server
        assert isinstance(server, ControlServer)
        _here.client = self.request
        with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):  # the client has gone
            while line := self.rfile.readline(MOST_LINE_BYTES + 1):
                if whole := len(line) <= MOST_LINE_BYTES:
                    with server.clients.busy(self.request):
                        reply = answer(server.call, line)
                else:
                    reply = refusal(f"a line of more than {MOST_LINE_BYTES} bytes")
                self.wfile.write(_line(reply))
                if not whole:
                    return


def remove_stale(path: Path, key: str) -> None:
    """Remove a Unix socket that nobody listens on.

    Raises:
        ConfigError: something else is in the way; `key` is the parameter that named it.
    """
    try:
        if not path.exists():
            return
        if not path.is_socket():
            raise ConfigError(f"{key}={path}: exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink()
        return
    except OSError as error:
        raise ConfigError(f"{key}={path}: {error.strerror or error}") from error
    raise ConfigError(f"{key}={path}: another process listens there")


def listen_at(path: Path, key: str, *, replacing: bool = False) -> socket.socket:
    """A socket that listens at `path`, which is there only once it does: who sees it can connect.

    `replacing`: in one step it takes the place of whatever is there, such as another server's.

    Raises:
        ConfigError: something is in the way; `key` is the parameter that named it.
        OSError: nobody can listen there.
    """
    if not replacing:
        remove_stale(path, key)
    long = len(os.fsencode(path.name))  # a name that is too long must not be bound under another
    unready = path.with_name(f".{os.urandom(3).hex()}".ljust(long, "-"))
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(unready))
        try:
            listener.listen(socket.SOMAXCONN)
            if replacing:
                unready.rename(path)
            else:
                path.hardlink_to(unready)  # unlike a rename it fails where another was quicker
        finally:
            unready.unlink(missing_ok=True)
    except BaseException:
        listener.close()
        raise
    return listener


class ControlServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves `call` on the socket at `path`, which the parameter `key` has named; see `listen_at`.

    With `replacing` it takes the place of another that may still serve.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, path: Path, call: Call, key: str = "control", *, replacing: bool = False
    ) -> None:
        super().__init__(str(path), _Handler, bind_and_activate=False)
        self.socket.close()
        self.call = call
        self.clients = Clients(MOST_CLIENTS)
        self._path = path
        self._serving = False
        previous = os.umask(0o177)
        try:
            self.socket = listen_at(path, key, replacing=replacing)
        except OSError as error:
            raise ConfigError(
                f"{key}={path}: {error.strerror or error}; give a path in a directory that exists"
            ) from error
        finally:
            os.umask(previous)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Whether there is a place for one more client; it is told if not."""
        if self.clients.admit(request):
            return True
        with suppress(OSError):
            request.send(_line(refusal(f"{MOST_CLIENTS} clients are being served; try again")))
        return False

    def close_request(self, request: Any) -> None:
        """The client has gone, or is sent away."""
        self.clients.leave(request)
        super().close_request(request)

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
