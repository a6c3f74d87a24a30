"""A secret that sites share, and how one proves to another that it has it, without saying it.

Whoever reaches a server's NBD port could otherwise seal its disk. The server gives out a *nonce*,
in the description of its export `control`; the client asks for the export NAME by the name

    key/NONCE/PROOF/NAME        PROOF = HMAC-SHA256(secret, NONCE/NAME), in hexadecimal digits

So the proof is part of the connection's handshake: once it is made nothing more is asked, and a
connection that was made ready long before the switch costs the switch nothing.

A nonce is good once, and for `NONCE_S`. It is signed by the process that made it, which therefore
remembers only those that were used. `_lock` guards these.
"""

import hashlib
import hmac
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from relocator.errors import ConfigError

NONCE_S = 30.0
_LEAST_LENGTH = 32
_PROVEN = re.compile(r"key/([0-9a-f]{60})/([0-9a-f]{64})/(.*)", re.DOTALL)
_NONCE = re.compile(r"nonce ([0-9a-f]{60})")


class Key:
    """The secret in a file. Nothing here ever shows it."""

    def __init__(self, path: Path, secret: bytes) -> None:
        self.path = path
        self._secret = secret

    def __repr__(self) -> str:
        return f"Key({str(self.path)!r})"

    def proof(self, nonce: str, name: str) -> str:
        """What proves, for the export `name`, that this key is known."""
        return hmac.new(self._secret, f"{nonce}/{name}".encode(), hashlib.sha256).hexdigest()

    def prove(self, description: str, name: str) -> str:
        """The name by which to ask for the export `name`; without a nonce, `name` itself.

        `description` is that of the server's export `control`.
        """
        if (found := _NONCE.fullmatch(description)) is None:
            return name  # a server without a key, or another one than ours
        return f"key/{found[1]}/{self.proof(found[1], name)}/{name}"


def read(option: str, path: Path) -> Key:
    """The key in a file that nobody else can read.

    Raises:
        ConfigError: there is none, or others can read it; names `option`.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read(4096).strip()
    except OSError as error:
        raise ConfigError(
            f"{option}={path}: {error.strerror}; make one with `relocator keygen {path}`, and copy "
            "it to the other site"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{option}={path}: is not a file")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"{option}={path}: others may use it (mode {mode:04o}); chmod 600 {path}, and make "
            "another one if they have"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{option}={path}: belongs to user {status.st_uid}; it must be ours")
    if len(text) < _LEAST_LENGTH:
        raise ConfigError(
            f"{option}={path}: {len(text)} bytes are too few; make one with `relocator keygen`"
        )
    return Key(path, text)


def make(path: Path) -> None:
    """Write a new secret to `path`, for its owner only.

    Raises:
        ConfigError: there is something already, or it can't be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"{path}: exists; remove it first, at each site that uses it") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    with os.fdopen(fd, "w") as file:
        file.write(os.urandom(32).hex() + "\n")


class Lock:
    """The server's side: gives out nonces, and looks at proofs of `key`."""

    def __init__(self, key: Key, now: Callable[[], float] = time.monotonic) -> None:
        self._key = key
        self._now = now
        self._own = Key(key.path, os.urandom(32))
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    def describe(self) -> str:
        """A fresh nonce, as the description of the export `control`."""
        body = f"{int(self._now() * 1000):012x}{os.urandom(8).hex()}"
        return f"nonce {body}{self._own.proof(body, '')[:32]}"

    def opens(self, name: str) -> tuple[str, bool]:
        """The export that is asked for by `name`, and whether the key was proven."""
        if (found := _PROVEN.fullmatch(name)) is None:
            return name, False
        nonce, proof, wanted = found.groups()
        right = hmac.compare_digest(proof, self._key.proof(nonce, wanted))
        return wanted, right and self._take(nonce)

    def _take(self, nonce: str) -> bool:
        """Whether a nonce is ours, young, and used for the first time."""
        body, now_s = nonce[:28], self._now()
        made_s = int(body[:12], 16) / 1000
        if not hmac.compare_digest(nonce[28:], self._own.proof(body, "")[:32]):
            return False
        with self._lock:
            self._used = {one: at for one, at in self._used.items() if now_s - at < 2 * NONCE_S}
            if nonce in self._used or now_s - made_s > NONCE_S:
                return False
            self._used[nonce] = now_s
        return True
