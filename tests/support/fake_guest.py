"""What stands in for a guest where no real one can be made to do what a test needs.

A QEMU's monitor whose state a test sets, or that hangs up at a certain command; and the guest's
agent, which is frozen or deaf.
"""

import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

COMMANDS = ("guest-info", "guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw")
CAPABILITIES = ("events", "multifd", "pause-before-switchover")
_GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}
_RAM = {"total": 100, "remaining": 50, "transferred": 50, "mbps": 1.0}


class _Served:
    """One client after the other, at a socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._client: socket.socket | None = None
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._client, _ = self._server.accept()
            except OSError:  # it is closed
                return
            with suppress(OSError), self._client, self._client.makefile("rb") as lines:
                self.serve(self._client, lines)

    def serve(self, client: socket.socket, lines: Any) -> None:
        """Speak to a client until it hangs up."""
        raise NotImplementedError

    def hang_up(self) -> None:
        """End the client's connection."""
        if self._client is not None:
            with suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Nobody listens any more."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.hang_up()
        self._thread.join()
        self.path.unlink(missing_ok=True)


class FakeMonitor(_Served):
    """A QEMU's QMP socket: `status` and `migration` are what it says; `heard` what it was told.

    `amounts`: it says how much was migrated; what has got a guest, and sent none, doesn't.
    `mute`: it hangs up on whoever comes, as an ssh does that can't reach the socket behind it;
    `mute_to`: on so many who come first.
    `capabilities` that are on, and `limits`, are what its migrations are done with.
    """

    LIMITS: ClassVar = {"downtime-limit": 300, "max-bandwidth": 1 << 27}

    def __init__(self, path: Path, status: str) -> None:
        self.status, self.migration = status, ""
        self.heard: list[str] = []
        self.capabilities: set[str] = set()
        self.limits = dict(self.LIMITS)
        self.mute, self.mute_to = False, 0
        self.amounts = True
        self.before: dict[str, Any] = {}
        super().__init__(path)

    def serve(self, client: socket.socket, lines: Any) -> None:
        """Speak QMP."""
        del lines
        if self.mute:
            return
        if self.mute_to:
            self.mute_to -= 1
            return
        _send(client, _GREETING)
        for message in _objects(client):
            command = message["execute"]
            if not command.startswith("query-") and command != "qmp_capabilities":
                self.heard.append(command)
            if command in self.before:
                self.before.pop(command)()
            answer: dict[str, Any] = {"return": self._do(command, message.get("arguments", {}))}
            if "id" in message:
                answer["id"] = message["id"]
            _send(client, answer)

    def _do(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "migrate-set-capabilities":
            for one in arguments["capabilities"]:
                change = self.capabilities.add if one["state"] else self.capabilities.discard
                change(one["capability"])
        elif command == "migrate-set-parameters":
            self.limits |= {name: value for name, value in arguments.items() if name in self.LIMITS}
        elif command == "migrate":
            self.migration = "active"
        elif command == "migrate_cancel":
            self.migration, self.status = "cancelled", "running"
        elif command in ("stop", "cont") and self.status != "inmigrate":
            self.status = "paused" if command == "stop" else "running"
        return {
            "query-status": {"status": self.status, "running": self.status == "running"},
            "query-migrate": self._migrated() if self.migration else {},
            "query-memory-size-summary": {"base-memory": 1 << 28},
            "query-migrate-parameters": self.limits,
            "query-migrate-capabilities": [
                {"capability": name, "state": name in self.capabilities} for name in CAPABILITIES
            ],
        }.get(command, {})

    def _migrated(self) -> dict[str, Any]:
        return {"status": self.migration, **({"ram": _RAM} if self.amounts else {})}

    def tell(self, event: str, **data: Any) -> None:
        """An event, to the client that is there."""
        assert self._client is not None
        at = {"seconds": int(time.time()), "microseconds": 0}
        _send(self._client, {"event": event, "data": data, "timestamp": at})

    def lose(self) -> None:
        """From now on it can't be reached, though it runs."""
        self.mute = True
        self.hang_up()

    def stand_still(self) -> None:
        """QEMU has paused the guest, and waits for the word to go on."""
        self.status, self.migration = "paused", "pre-switchover"


class FakeAgent(_Served):
    """qemu-guest-agent's side of a socket; `deaf` to some commands. Frozen, it allows few."""

    def __init__(self, path: Path, *deaf: str, frozen: bool = False) -> None:
        self.deaf, self.frozen = deaf, frozen
        self.known = COMMANDS
        self.heard: list[str] = []
        super().__init__(path)

    def serve(self, client: socket.socket, lines: Any) -> None:
        """Speak the agent's protocol."""
        client.sendall(b'{"return": "of an earlier client"}\n')
        for line in lines:
            self._answer(client, json.loads(line.strip(b"\xff")))

    def _answer(self, client: socket.socket, message: dict[str, Any]) -> None:
        command = message["execute"]
        if command == "guest-sync-delimited":
            client.sendall(b"\xff")
            _send(client, {"return": message["arguments"]["id"]})
            return
        self.heard.append(command)
        if command in self.deaf:
            return
        if command == "guest-info":
            found: Any = {
                "supported_commands": [
                    {
                        "name": name,
                        "enabled": not (self.frozen and name == "guest-fsfreeze-freeze"),
                    }
                    for name in self.known
                ]
            }
        elif command == "guest-fsfreeze-status":
            found = "frozen" if self.frozen else "thawed"
        else:
            self.frozen, found = command == "guest-fsfreeze-freeze", 1
        _send(client, {"return": found})


def _send(client: socket.socket, message: dict[str, Any]) -> None:
    client.sendall(json.dumps(message).encode() + b"\n")


def _objects(client: socket.socket) -> Any:
    """The JSON objects that come in; QMP's clients may end them without a line's end."""
    text, decoder = "", json.JSONDecoder()
    while True:
        text = text.lstrip()
        try:
            message, end = decoder.raw_decode(text)
        except ValueError:
            piece = client.recv(1 << 16)
            if not piece:
                return
            text += piece.decode()
            continue
        text = text[end:]
        yield message
