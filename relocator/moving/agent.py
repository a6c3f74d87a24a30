"""The guest's own agent (qemu-guest-agent), by the socket of its virtio port at one of the QEMUs.

Lines of JSON, one command at a time, as in QEMU's docs/interop/qemu-ga-ref. What an earlier client
left unread is skipped: each command is preceded by a `guest-sync-delimited` whose answer begins
with a byte that no JSON has.
"""

import json
import random
import socket
import time
from contextlib import suppress
from typing import Any

from relocator.errors import ConfigError, RelocatorError
from relocator.moving.address import Address, parse
from relocator.moving.reach import Reach

ANSWER_S = 5.0
#: how long the guest's file systems may take to write what they owe, and then be frozen before QEMU
#: pauses the guest
FREEZE_S = 10.0
_DELIMITER = b"\xff"
_NEEDED = ("guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw")


class Agent:
    """The agent as it is reached at one site; `name` is what messages call it."""

    def __init__(self, name: str, address: Address, reach: Reach) -> None:
        self.name = name
        self.address = address
        self._reach = reach
        self._socket: socket.socket | None = None
        self._read = b""

    def connect(self) -> None:
        """Connect, unless that has been done; nothing is asked.

        Raises:
            RelocatorError: nobody listens there.
        """
        if self._socket is not None:
            return
        try:
            if self.address.path is None:
                to = (str(self.address.host), int(self.address.port or 0))
                self._socket = socket.create_connection(to, ANSWER_S)
            else:
                path = self._reach.path(self.address)
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(ANSWER_S)
                self._socket.connect(path)
        except OSError as error:
            self.close()
            raise self._failed(error.strerror or str(error)) from error

    def check(self) -> None:
        """It answers, and can freeze.

        Raises:
            RelocatorError: it doesn't, or can't.
        """
        known = self.call("guest-info")["supported_commands"]
        enabled = {command["name"] for command in known if command["enabled"]}
        if missing := [name for name in _NEEDED if name not in enabled]:
            raise self._failed(f"it doesn't allow {', '.join(missing)}")

    def frozen(self) -> bool:
        """Whether the guest's file systems are frozen."""
        return bool(self.call("guest-fsfreeze-status") == "frozen")

    def freeze(self) -> int:
        """Have the file systems write what they owe, and let no write pass; how many there are."""
        count = int(self.call("guest-fsfreeze-freeze", FREEZE_S))
        if count == 0:
            raise self._failed("it found no file system to freeze")
        return count

    def thaw(self, patience_s: float = FREEZE_S) -> None:
        """Let writes pass again; nothing if they do."""
        self.call("guest-fsfreeze-thaw", patience_s)

    def call(self, command: str, patience_s: float = ANSWER_S) -> Any:
        """Carry out a command and return what it returns.

        Raises:
            RelocatorError: no answer in time, or it refused.
        """
        self.connect()
        give_up_s = time.monotonic() + patience_s
        try:
            self._synchronise(give_up_s)
            self._send({"execute": command})
            answer = self._answer(give_up_s)
        except OSError as error:
            self.close()
            late = isinstance(error, TimeoutError)
            why = f"no answer to '{command}' within {patience_s:g} s" if late else str(error)
            raise self._failed(why) from error
        if "error" in answer:
            raise self._failed(f"it refused '{command}': {answer['error'].get('desc')}")
        return answer.get("return")

    def close(self) -> None:
        """Hang up."""
        connection, self._socket = self._socket, None
        self._read = b""
        if connection is not None:
            with suppress(OSError):
                connection.close()

    def _failed(self, why: str) -> RelocatorError:
        return RelocatorError(f"the guest agent at {self.name} ({self.address}): {why}")

    def _synchronise(self, give_up_s: float) -> None:
        """Skip what is left of earlier commands."""
        number = random.randrange(1 << 31)
        self._send({"execute": "guest-sync-delimited", "arguments": {"id": number}}, _DELIMITER)
        while True:
            self._until(_DELIMITER, give_up_s)
            if self._answer(give_up_s).get("return") == number:
                return

    def _send(self, message: dict[str, Any], before: bytes = b"") -> None:
        assert self._socket is not None
        self._socket.sendall(before + json.dumps(message).encode() + b"\n")

    def _answer(self, give_up_s: float) -> dict[str, Any]:
        line = self._until(b"\n", give_up_s).strip(_DELIMITER)
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise OSError(f"it said {line[:60]!r}, which is not JSON") from error
        return answer if isinstance(answer, dict) else {}

    def _until(self, end: bytes, give_up_s: float) -> bytes:
        """What comes before `end`; TimeoutError if that doesn't come in time."""
        assert self._socket is not None
        while end not in self._read:
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            piece = self._socket.recv(1 << 16)
            if not piece:
                raise ConnectionError("it has hung up")
            self._read += piece
        found, _, self._read = self._read.partition(end)
        return found


def parse_agents(option: str, text: str) -> tuple[Address, Address]:
    """`SOURCE,DEST`: the agent's socket at both QEMUs.

    Raises:
        ConfigError: it is something else.
    """
    source, comma, destination = text.partition(",")
    if not comma or not source or not destination:
        raise ConfigError(
            f"{option}={text}: write SOURCE,DEST: the guest agent's sockets at both QEMUs"
        )
    return parse(option, source), parse(option, destination)
