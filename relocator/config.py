"""The plugin's KEY=VALUE parameters, checked before anything is touched.

Every refusal is one line: the key, the value, and what would be right. Paths are made absolute
here, because nbdkit changes its directory when it goes into the background.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relocator import words
from relocator.copying import deadline
from relocator.copying.recent import LARGEST_PLACES, MOST_PLACES
from relocator.copying.timetable import MOST_ENTRIES, Timetable
from relocator.errors import ConfigError
from relocator.source import endpoint
from relocator.source.endpoint import Endpoint
from relocator.source.key import Key
from relocator.source.key import read as read_key
from relocator.store import geometry

ORDERS = ("recent", "in-use", "hot", "sequential", "random")
MOST_CONNECTIONS = 16
REFRESH_S = 5.0


@dataclass(frozen=True)
class Config:
    """What to serve. With a `source`, a disk that may still be partly there; else one that is here.

    `disk` is the image, `store` the directory of the maps (and of the image, if `disk` is None).
    """

    disk: Path | None = None
    store: Path | None = None
    source: str | None = None
    control: Path | None = None
    standby: bool = False
    activate_on_write: bool = False
    background: bool = True
    order: tuple[str, ...] = ("recent", "in-use", "hot", "sequential")
    recent_places: int = MOST_PLACES
    pull_forward: bool = True
    skip_free: bool = False
    rate: Timetable | None = None
    rate_group: Path | None = None
    finish_by_s: float | None = None
    window_bytes: int | None = None
    block_bytes: int | None = None
    readahead_bytes: int | None = None
    seeds: tuple[Path, ...] = ()
    seed_rate_bits_per_s: float | None = 2e9
    seal_brings_bytes: int | None = None
    refresh_s: float | None = REFRESH_S
    source_bitmap: str | None = None
    retry_timeout_s: float = 60.0
    connections: int | None = None
    shared: bool = False
    tls: str | None = None
    tls_certificates: Path | None = None
    tls_psk: Path | None = None
    ssh_options: tuple[str, ...] = ()
    key: Key | None = None

    @property
    def endpoint(self) -> Endpoint | None:
        """The source, with all that connecting to it takes."""
        if self.source is None:
            return None
        return Endpoint(
            self.source,
            self.tls,
            self.tls_certificates,
            self.tls_psk,
            self.ssh_options,
            self.key,
        )


def parse_timetable(key: str, text: str) -> Timetable:
    """A rate, or entries `HH:MM,RATE` with spaces between them: from when on which rate holds."""
    parts = text.split()
    if len(parts) == 1 and "," not in text:
        return Timetable((0, words.rate(key, text)))
    entries: dict[int, float | None] = {}
    for word in parts:
        at, _, rate = word.partition(",")
        match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", at)
        if not match or not rate:
            raise ConfigError(
                f"{key}={text}: '{word}' is no entry of a timetable; "
                "write HH:MM,RATE, as in '07:00,20M 23:30,none'"
            )
        minute = int(match[1]) * 60 + int(match[2])
        if minute in entries:
            raise ConfigError(f"{key}={text}: {at} is there twice; give each time once")
        entries[minute] = words.rate(key, rate)
    if not entries:
        raise ConfigError(f"{key}=: is empty; write 50M, none, or '07:00,20M 23:30,none'")
    if len(entries) > MOST_ENTRIES:
        raise ConfigError(f"{key}={text}: {len(entries)} entries; at most {MOST_ENTRIES}")
    return Timetable(*entries.items())


def _choice(*choices: str) -> Callable[[str, str], str]:
    """Reads one of `choices`."""

    def read(key: str, text: str) -> str:
        if text not in choices:
            raise ConfigError(f"{key}={text}: must be one of {', '.join(choices)}")
        return text

    return read


def _whether(true: str, *choices: str) -> Callable[[str, str], bool]:
    """Reads one of two words; whether it is `true`."""
    read = _choice(*choices)
    return lambda key, text: read(key, text) == true


parse_switch = _whether("on", "on", "off")
_parse_yes = _whether("yes", "yes", "no")


def parse_order(key: str, text: str) -> tuple[str, ...]:
    """A comma-separated list of sort keys, the first weighs most; `trace:FILE` among them."""
    return tuple(_parse_order_key(key, part.strip()) for part in text.split(","))


def _parse_order_key(key: str, text: str) -> str:
    if text.startswith("trace:"):
        path = _parse_path(key, text.removeprefix("trace:"))
        if not words.is_file(path):
            raise ConfigError(f"{key}={text}: there is no such file")
        return f"trace:{path}"
    if text not in ORDERS:
        raise ConfigError(f"{key}={text}: must be one of {', '.join(ORDERS)} or trace:FILE")
    return text


def parse_amount(key: str, text: str) -> int | None:
    """A size in bytes, 0 for none, or `auto` (None)."""
    return None if text == "auto" else words.size(key, text)


def parse_window(key: str, text: str) -> int | None:
    """A size in bytes, or `auto` (None)."""
    size = None if text == "auto" else words.size(key, text)
    if size is not None and size < 1 << 12:
        raise ConfigError(f"{key}={text}: too small to make progress; at least 4K, or auto")
    return size


def parse_block(key: str, text: str) -> int | None:
    """The unit of the maps: a power of two, or `auto` (None)."""
    if text == "auto":
        return None
    size = words.size(key, text)
    try:
        geometry.Geometry(0, size)
    except ValueError as error:
        raise ConfigError(
            f"{key}={text}: must be a power of two from 512 to 1M, or auto"
        ) from error
    return size


def parse_seconds(key: str, text: str) -> float:
    """A time of at least 0 seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{key}={text}: not a time in seconds; write a number such as 60")
    return value


def parse_refresh(key: str, text: str) -> float | None:
    """Seconds from one round to the next, or `off` (None)."""
    value = None if text == "off" else parse_seconds(key, text)
    if value is not None and value < 0.1:
        raise ConfigError(f"{key}={text}: too often; write 0.1 s at least, or off")
    return value


def _parse_source(key: str, text: str) -> str:
    """A URI that can be connected to."""
    if problem := Endpoint(text).problem():
        raise ConfigError(f"{key}={words.without_password(text)}: {problem}")
    return text


def _parse_name(key: str, text: str) -> str:
    """A name, as QEMU's are: of at most 1023 bytes."""
    with suppress(UnicodeEncodeError):
        if 0 < len(text.encode()) < 1024:
            return text
    raise ConfigError(f"{key}={text}: not a name; write 1 to 1023 bytes of UTF-8")


def parse_connections(key: str, text: str) -> int | None:
    """How many connections, one of them for demand and the others for the copy; `auto` is None."""
    if text == "auto":
        return None
    number = words.whole(text)
    if number is None or not 2 <= number <= MOST_CONNECTIONS:
        raise ConfigError(
            f"{key}={text}: must be auto or a number from 2 to {MOST_CONNECTIONS}; "
            "one is kept for what the guest waits for"
        )
    return number


def parse_count(key: str, text: str) -> int:
    """A number of places."""
    number = words.whole(text)
    if number is None or number > LARGEST_PLACES:
        raise ConfigError(f"{key}={text}: must be a number from 0 (none) to {LARGEST_PLACES}")
    return number


def _parse_certificates(key: str, text: str) -> Path:
    """A directory with ca-cert.pem and, where the server asks for them, client-{cert,key}.pem."""
    path = _parse_path(key, text)
    if not words.is_file(path / "ca-cert.pem"):
        raise ConfigError(f"{key}={text}: must be a directory with ca-cert.pem in it")
    if words.is_file(path / "client-cert.pem") != words.is_file(path / "client-key.pem"):
        raise ConfigError(f"{key}={text}: of client-cert.pem and client-key.pem one is missing")
    return path


def _parse_ssh_options(key: str, text: str) -> tuple[str, ...]:
    """Words for ssh's command line."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{key}={text}: {error}; quote it as for a shell") from error


def _parse_path(key: str, text: str) -> Path:
    """A path, made absolute."""
    if not text:
        raise ConfigError(f"{key}=: is empty; give a path")
    if not words.is_path(text):
        raise ConfigError(f"{key}={text}: no file can have that name; give another path")
    return Path(text).absolute()


def _parse_store(key: str, text: str) -> Path:
    """A directory; where a URI stands in its place, it was forgotten."""
    if re.match(r"[a-z+]+://", text):
        raise ConfigError(
            f"{key}={words.without_password(text)}: is a source, not a directory; "
            "give the store first (relocator proxy STORE SOURCE), the source as source="
        )
    return _parse_path(key, text)


def _parse_file(key: str, text: str) -> Path:
    """The path of a file that exists."""
    path = _parse_path(key, text)
    if not words.is_file(path):
        raise ConfigError(f"{key}={text}: there is no such file")
    return path


def _parse_seeds(key: str, text: str) -> tuple[Path, ...]:
    """Comma-separated paths of images that exist; one that is no raw image is refused later."""
    for path in (paths := tuple(_parse_path(key, part) for part in text.split(","))):
        if not (words.is_file(path) or words.is_device(path)):
            raise ConfigError(f"{key}={path}: there is no such file or block device")
    return paths


#: key -> (whether it makes sense only with a store, field of Config, how its text is read)
KEYS: dict[str, tuple[bool, str, Callable[[str, str], object]]] = {
    "disk": (False, "disk", _parse_path),
    "store": (False, "store", _parse_store),
    "control": (False, "control", _parse_path),
    "key": (False, "key", lambda key, text: read_key(key, _parse_path(key, text))),
    "block": (False, "block_bytes", parse_block),
    "recent": (False, "recent_places", parse_count),
    "source": (True, "source", _parse_source),
    "mode": (True, "standby", _whether("standby", "active", "standby")),
    "activate-on-write": (True, "activate_on_write", _parse_yes),
    "background": (True, "background", parse_switch),
    "order": (True, "order", parse_order),
    "pull-forward": (True, "pull_forward", _parse_yes),
    "skip-free": (True, "skip_free", _parse_yes),
    "rate": (True, "rate", parse_timetable),
    "rate-group": (True, "rate_group", _parse_path),
    "finish-by": (True, "finish_by_s", deadline.parse_moment),
    "window": (True, "window_bytes", parse_window),
    "readahead": (True, "readahead_bytes", parse_amount),
    "seed": (True, "seeds", _parse_seeds),
    "seed-rate": (True, "seed_rate_bits_per_s", words.rate),
    "seal-brings": (True, "seal_brings_bytes", parse_amount),
    "refresh": (True, "refresh_s", parse_refresh),
    "source-bitmap": (True, "source_bitmap", _parse_name),
    "retry-timeout": (True, "retry_timeout_s", parse_seconds),
    "connections": (True, "connections", parse_connections),
    "demand": (True, "shared", _whether("shared", "own", "shared")),
    "tls": (True, "tls", _choice(*endpoint.TLS)),
    "tls-certificates": (True, "tls_certificates", _parse_certificates),
    "tls-psk": (True, "tls_psk", _parse_file),
    "ssh-options": (True, "ssh_options", _parse_ssh_options),
}


def parse(pairs: Mapping[str, str]) -> Config:
    """The whole configuration.

    Raises:
        ConfigError: a key is unknown, missing, or out of place; or a value is wrong.
    """
    for key in pairs:
        if key not in KEYS:
            raise ConfigError(f"{key}={pairs[key]}: unknown key; known: {', '.join(KEYS)}")
    if "disk" not in pairs and "store" not in pairs:
        raise ConfigError("give disk=PATH (a target) or store=DIR (a proxy): neither was given")
    fields: dict[str, Any] = {}
    for key, text in pairs.items():
        needs_store, field, read = KEYS[key]
        if needs_store and "store" not in pairs:
            raise ConfigError(f"{key}={text}: is for a proxy, and a proxy needs store=DIR")
        fields[field] = read(key, text)
    settings = Config(**fields)
    if (name := settings.source_bitmap) and not settings.standby:
        raise ConfigError(f"source-bitmap={name}: is for mode=standby")
    if settings.endpoint is not None and (conflict := settings.endpoint.conflict()):
        raise ConfigError(conflict)
    return settings
