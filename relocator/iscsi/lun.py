"""What is served: a disk's address as an NBD client sees it, and as an initiator will.

Pure: values, and how they are checked.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from relocator import words
from relocator.errors import ConfigError, RelocatorError

PORT = 3260
LUN = 1
NBD_PORT = 10809
_IQN = re.compile(r"iqn\.\d{4}-\d\d\.[a-z0-9.-]+(:[a-z0-9.:-]+)?|eui\.[0-9a-fA-F]{16}")
#: so long, a server that isn't there at the start is waited for: it may be starting again
OPEN_S = 5
_SECRET = range(12, 17)  # what initiators take: RFC 3720 wants 12 at least, some stop at 16


@dataclass(frozen=True)
class Chap:
    """What an initiator must know."""

    user: str
    password: str


@dataclass(frozen=True)
class Lun:
    """A disk to be served.

    `host` and `port` are the portal's. `allow` are the initiators' addresses; none means all.
    """

    uri: str
    name: str
    host: str
    port: int
    allow: tuple[str, ...] = ()
    chap: Chap | None = None
    patience_s: int = 60

    @property
    def portal(self) -> str:
        """As in an URI."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def address(self) -> str:
        """What an initiator is told."""
        return f"iscsi://{self.portal}/{self.name}/{LUN}"

    @property
    def serial(self) -> str:
        """16 hexadecimal digits, the same for the same name at any site."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    def server(self) -> dict[str, str]:
        """The NBD server, as QEMU wants it described."""
        parts = urlsplit(self.uri)
        if parts.scheme == "nbd+unix":
            return {"type": "unix", "path": parse_qs(parts.query)["socket"][0]}
        return {"type": "inet", "host": parts.hostname or "", "port": str(parts.port or NBD_PORT)}

    def image(self) -> str:
        """What qemu-nbd opens: the server's disk, asked for again while the server is away."""
        options = {
            "driver": "nbd",
            "server": self.server(),
            "export": unquote(urlsplit(self.uri).path.removeprefix("/")),
            "reconnect-delay": self.patience_s,
            "open-timeout": min(OPEN_S, self.patience_s),
        }
        return f"json:{json.dumps({'driver': 'raw', 'file': options})}"

    def not_opened(self, said: str) -> RelocatorError:
        """Why qemu-nbd can't open it; `said` is from its log."""
        why = said.rpartition(f"'{self.image()}': ")[2].partition(" | ")[0]
        return RelocatorError(f"DISK={self.uri}: can't be opened: {why}")


def check_uri(uri: str) -> str:
    """`uri` if it names an NBD server nearby.

    Raises:
        ConfigError: it does not.
    """
    parts = words.uri(uri)
    if parts is None or not _is_nearby(parts):
        raise ConfigError(
            f"DISK={uri}: not an NBD server nearby; write nbd://HOST[:PORT][/EXPORT] or "
            "nbd+unix:///[EXPORT]?socket=/PATH"
        )
    return uri


def _is_nearby(parts: SplitResult) -> bool:
    if parts.scheme == "nbd+unix":
        return parse_qs(parts.query).get("socket", [""])[0][:1] == "/"
    return parts.scheme == "nbd" and bool(parts.hostname) and words.has_port(parts)


def check_name(name: str) -> str:
    """`name` if it is an iSCSI name (RFC 3720, 3.2.6.3).

    Raises:
        ConfigError: it is not.
    """
    if not _IQN.fullmatch(name):
        raise ConfigError(
            f"--name={name}: not an iSCSI name; write iqn.YEAR-MONTH.DOMAIN-REVERSED:NAME, "
            "such as iqn.2024-01.org.example:disk"
        )
    return name


def read_chap(path: Path) -> Chap:
    """User and password from the file's first line, `USER:PASSWORD`.

    Raises:
        ConfigError: it can't be read, or has no such line.
    """
    try:
        user, colon, password = path.read_text().split("\n", 1)[0].partition(":")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"--chap={path}: can't be read: {why}") from error
    if not colon or not user or len(password) not in _SECRET:
        raise ConfigError(
            f"--chap={path}: its first line must be USER:PASSWORD, with a password of "
            f"{_SECRET.start} to {_SECRET.stop - 1} characters"
        )
    return Chap(user, password)
