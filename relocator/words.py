"""What somebody has written: as a number, a size, a path; and to be shown.

Python's own ways raise for what is absurd: digits by the thousand, names that no file can have.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from relocator.errors import ConfigError

#: what is wrong with a URI `SCHEME://USER:PASSWORD@HOST`; with `ssh://`, as the end of a line
SHOWS_PASSWORD = "holds a password, which ps, the status and the logs would show"
HOLDS_PASSWORD = f"{SHOWS_PASSWORD}; leave :PASSWORD out, and let ssh get in by a key"
_MOST_DIGITS = 18
_LARGEST_SIZE = (1 << 63) - 1  # a file's
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_MOST_SHOWN = 1000
_MOST_PATH_BYTES, _MOST_NAME_BYTES = 4095, 255  # PATH_MAX without its zero byte, NAME_MAX


def whole(text: str) -> int | None:
    """A whole number that is not negative."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def size(key: str, text: str) -> int:
    """A size in bytes such as `4096`, `64K`, `1M` (powers of 1024)."""
    match = re.fullmatch(r"(\d+)([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise ConfigError(f"{key}={text}: not a size; write bytes or a suffix, such as 64K or 1M")
    number = whole(match[1])
    if number is None or number * _UNITS[match[2]] > _LARGEST_SIZE:
        raise ConfigError(f"{key}={text}: no file is as large; write less than 8388608T")
    return number * _UNITS[match[2]]


def rate(key: str, text: str) -> float | None:
    """Bits a second such as `50M`, `50mbit`, `1.5G` (powers of 1000); `none` is no cap."""
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([kmg]?)(?:bit|bit/s|bps)?", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise ConfigError(f"{key}={text}: not a rate in bits a second; write 50M, 800K or none")
    return float(match[1]) * _DECIMAL[match[2]]


def without_password(text: str) -> str:
    """The same for others to see, without what follows the user's name in a URI.

    A password may hold anything; only what can be a port, or begins an IPv6 address, is none.
    """
    return re.sub(r"(://[^@/%:\[]*[%:])(?!\d*(?:[/?#]|$)).*@", r"\1...@", text, flags=re.DOTALL)


def uri(text: str) -> SplitResult | None:
    """A URI in its parts; see `has_port` for one of them."""
    with suppress(ValueError):
        return urlsplit(text)
    return None


def has_port(parts: SplitResult) -> bool:
    """Whether the port is one, or left out."""
    with suppress(ValueError):
        return parts.port != 0
    return False


def printable(text: str) -> str:
    """`text` on one line, and nothing in it that a terminal would obey."""
    return "".join(one if one.isprintable() else "?" for one in text[:_MOST_SHOWN])


def is_path(text: str) -> bool:
    """Whether a file could have that path."""
    try:
        names = os.fsencode(text)
    except ValueError:
        return False
    return (
        0 < len(names) <= _MOST_PATH_BYTES
        and b"\0" not in names
        and all(len(name) <= _MOST_NAME_BYTES for name in names.split(b"/"))
    )


def is_file(path: Path) -> bool:
    """Whether there is a regular file, as far as can be seen."""
    with suppress(OSError, ValueError):
        return path.is_file()
    return False


def is_device(path: Path) -> bool:
    """Whether there is a block device, as far as can be seen."""
    with suppress(OSError, ValueError):
        return path.is_block_device()
    return False
