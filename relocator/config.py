"""The plugin's KEY=VALUE parameters, checked before anything is touched.

Every refusal is one line: the key, the value, and what would be right. Paths are made absolute
here, because nbdkit changes its directory when it goes into the background.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from relocator import geometry
from relocator.errors import ConfigError

ORDERS = ("sequential",)
MODES = ("active",)
SCHEMES = ("nbd", "nbd+unix")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True)
class TargetConfig:
    """A disk that is all here."""

    disk: Path
    control: Path | None = None


@dataclass(frozen=True)
class ProxyConfig:
    """A disk that may still be partly at its source; `source` may be None once complete."""

    store: Path
    source: str | None = None
    control: Path | None = None
    background: bool = True
    order: tuple[str, ...] = ("sequential",)
    rate_bits_per_s: float | None = None
    window_bytes: int | None = None
    block_bytes: int = 4096
    retry_timeout_s: float = 60.0


def parse_size(key: str, text: str) -> int:
    """A size in bytes such as `4096`, `64K`, `1M` (powers of 1024)."""
    match = re.fullmatch(r"(\d+)([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise ConfigError(f"{key}={text}: not a size; write bytes or a suffix, such as 64K or 1M")
    return int(match[1]) * _UNITS[match[2]]


def parse_rate(key: str, text: str) -> float | None:
    """Bits a second such as `50M`, `50mbit`, `1.5G` (powers of 1000); `none` is no cap."""
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)(?:bit|bit/s|bps)?", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise ConfigError(f"{key}={text}: not a rate in bits a second; write 50M, 800K or none")
    return float(match[1]) * _DECIMAL[match[2]]


def parse_choice(key: str, text: str, choices: tuple[str, ...]) -> str:
    """One of `choices`."""
    if text not in choices:
        raise ConfigError(f"{key}={text}: must be one of {', '.join(choices)}")
    return text


def parse_switch(key: str, text: str) -> bool:
    """`on` or `off`."""
    return parse_choice(key, text, ("on", "off")) == "on"


def parse_order(key: str, text: str) -> tuple[str, ...]:
    """A comma-separated list of sort keys, the first weighs most."""
    return tuple(parse_choice(key, part.strip(), ORDERS) for part in text.split(","))


def parse_window(key: str, text: str) -> int | None:
    """A size in bytes, or `auto` (None)."""
    if text == "auto":
        return None
    size = parse_size(key, text)
    if size < 1 << 12:
        raise ConfigError(f"{key}={text}: too small to make progress; at least 4K, or auto")
    return size


def parse_block(key: str, text: str) -> int:
    """The unit of the maps: a power of two."""
    size = parse_size(key, text)
    try:
        geometry.Geometry(0, size)
    except ValueError as error:
        raise ConfigError(
            f"{key}={text}: must be a power of two from 512 to 1M; 4K suits most disks"
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


def parse_source(key: str, text: str) -> str:
    """An NBD URI that can be connected to."""
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"{key}={text}: not an NBD URI; write nbd://HOST[:PORT][/EXPORT] "
            "or nbd+unix:///[EXPORT]?socket=PATH"
        )
    if parts.scheme == "nbd+unix" and "socket=/" not in parts.query:
        raise ConfigError(f"{key}={text}: needs ?socket= with an absolute path")
    if parts.scheme == "nbd" and not parts.hostname:
        raise ConfigError(f"{key}={text}: names no host; write nbd://HOST[:PORT]")
    return text


def parse_path(key: str, text: str) -> Path:
    """A path, made absolute."""
    if not text:
        raise ConfigError(f"{key}=: is empty; give a path")
    return Path(text).absolute()


#: key -> (role it belongs to, field of the configuration, how its text is read)
_KEYS = {
    "disk": ("target", "disk", parse_path),
    "control": ("both", "control", parse_path),
    "store": ("proxy", "store", parse_path),
    "source": ("proxy", "source", parse_source),
    "mode": ("proxy", None, lambda key, text: parse_choice(key, text, MODES)),
    "background": ("proxy", "background", parse_switch),
    "order": ("proxy", "order", parse_order),
    "rate": ("proxy", "rate_bits_per_s", parse_rate),
    "window": ("proxy", "window_bytes", parse_window),
    "block": ("proxy", "block_bytes", parse_block),
    "retry-timeout": ("proxy", "retry_timeout_s", parse_seconds),
}


def parse(pairs: Mapping[str, str]) -> TargetConfig | ProxyConfig:
    """The whole configuration.

    Raises:
        ConfigError: a key is unknown, missing, or of the other role; or a value is wrong.
    """
    for key in pairs:
        if key not in _KEYS:
            raise ConfigError(f"{key}={pairs[key]}: unknown key; known: {', '.join(_KEYS)}")
    if ("disk" in pairs) == ("store" in pairs):
        given = "both were given" if "disk" in pairs else "neither was given"
        raise ConfigError(f"give disk=PATH (a target) or store=DIR (a proxy): {given}")
    role = "target" if "disk" in pairs else "proxy"
    fields: dict[str, object] = {}
    for key, text in pairs.items():
        belongs, field, read = _KEYS[key]
        if belongs not in (role, "both"):
            raise ConfigError(f"{key}={text}: is for a {belongs} and this is a {role}")
        value = read(key, text)
        if field is not None:
            fields[field] = value
    return (TargetConfig if role == "target" else ProxyConfig)(**fields)  # type: ignore[arg-type]
