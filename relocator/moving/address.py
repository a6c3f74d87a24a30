"""How a socket is named on the command line; pure, nothing is opened here.

PATH, unix:PATH                   a Unix socket on this host
HOST:PORT                         TCP (QMP only: control sockets are Unix sockets)
ssh://[USER@]HOST[:PORT]/PATH     a Unix socket on another host, through ssh
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from relocator import words
from relocator.errors import ConfigError

_TCP = re.compile(r"(?P<host>[^/:]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]+)")
#: ssh takes the first value it meets for an option
_SSH_OPTIONS = (
    "BatchMode=yes",  # nobody is there to type a password
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=2",
    "ControlPath=none",
    "ExitOnForwardFailure=yes",
)


@dataclass(frozen=True)
class Address:
    """A Unix socket (`path`), on this host or behind `ssh`; or a TCP `host` and `port`."""

    text: str
    path: str | None = None
    host: str | None = None
    port: int | None = None
    ssh: str | None = None

    def __str__(self) -> str:
        return self.text

    def forward_command(self, local: str, ssh_options: Sequence[str] = ()) -> list[str]:
        """The ssh that makes the far socket appear at the path `local` as long as it runs."""
        parts = urlsplit(self.text)
        options = [f"-o{option}" for option in _SSH_OPTIONS]
        argv = ["ssh", "-N", *ssh_options, *options, "-L", f"{local}:{self.path}"]
        argv += ["-p", str(parts.port)] if parts.port else []
        argv += ["-l", unquote(parts.username)] if parts.username else []
        return [*argv, "--", str(self.ssh)]


def parse(option: str, text: str, *, tcp: bool = True) -> Address:
    """What `text`, given for `option`, names.

    Raises:
        ConfigError: it names nothing that can be connected to.
    """
    if text.startswith("ssh://"):
        return _behind_ssh(option, text)
    if found := _TCP.fullmatch(text):
        if not tcp:
            raise ConfigError(
                f"{option}={text}: a control socket is a Unix socket; "
                "write PATH or ssh://[USER@]HOST/PATH"
            )
        port = words.whole(found["port"])
        if port is None or not 0 < port < 65536:
            raise ConfigError(f"{option}={text}: the port is not a number from 1 to 65535")
        return Address(text, host=found["host"].strip("[]"), port=port)
    path = text.removeprefix("unix:")
    if not path or "://" in path:
        forms = "PATH, HOST:PORT" if tcp else "PATH"
        raise ConfigError(f"{option}={text}: write {forms} or ssh://[USER@]HOST[:PORT]/PATH")
    return Address(text, path=path)


def _behind_ssh(option: str, text: str) -> Address:
    parts = words.uri(text)
    known = parts is not None and words.has_port(parts) and len(parts.path) > 1
    if parts is None or not known or (parts.hostname or "-").startswith("-"):
        shown = words.without_password(text)
        raise ConfigError(f"{option}={shown}: write ssh://[USER@]HOST[:PORT]/PATH/OF/SOCKET")
    if parts.password is not None:
        raise ConfigError(f"{option}={words.without_password(text)}: {words.HOLDS_PASSWORD}")
    return Address(text, path=unquote(parts.path), ssh=parts.hostname)
