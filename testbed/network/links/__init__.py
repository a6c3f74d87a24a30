"""Links by name, a file each: what a wide-area link between two sites may be like.

    about        what it is, in a line
    rtt, rate    there and back; each way
    jitter       each way, plus or minus
    loss         each way
    queue        what the routers queue; without it, one bandwidth-delay product
    congestion   what TCP does; without it, the kernel's own choice, cubic

The figures are typical of such links, not measurements of a certain one. To add a link, write a
file here, or announce a package of such files from another project (`testbed.discovery`).
"""

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from testbed import discovery
from testbed.network import wan
from testbed.network.wan import LinkProfile, ProfileError

_READ: dict[str, tuple[str, Any]] = {
    "rtt": ("rtt_s", wan.parse_time_s),
    "rate": ("rate_bits_per_s", wan.parse_rate_bits_per_s),
    "jitter": ("jitter_s", wan.parse_time_s),
    "loss": ("loss", wan.parse_fraction),
    "queue": ("queue_bytes", wan.parse_size_bytes),
    "congestion": ("congestion", lambda _, text: text),
}


def library() -> dict[str, Traversable]:
    """The file of every link, by the link's name; ours first."""
    packages = [__name__, *(one.__name__ for one in discovery.announced(discovery.LINKS).values())]
    found: dict[str, Traversable] = {}
    for package in packages:
        for path in sorted(files(package).iterdir(), key=lambda one: one.name):
            if path.name.endswith(".toml"):
                found.setdefault(path.name.removesuffix(".toml"), path)
    return found


def about() -> dict[str, str]:
    """What each link is, in a line, by its name."""
    return {name: tomllib.loads(path.read_text())["about"] for name, path in library().items()}


def link(name: str | None = None, **values: str) -> LinkProfile:
    """The link with this name, with some of its values in place of the library's.

    Raises:
        ProfileError: there is none, or a value can't be.
    """
    given: dict[str, str] = {}
    if name is not None:
        known = library()
        if name not in known:
            raise ProfileError("link", repr(name), f"must be one of {', '.join(known)}")
        given = tomllib.loads(known[name].read_text())
        given.pop("about")
    return read(given | values)


def read(texts: Mapping[str, str]) -> LinkProfile:
    """A link of its values as they are written in a file."""
    for key in ("rtt", "rate"):
        if key not in texts:
            raise ProfileError(key, "nothing", "a link has a round-trip time and a rate")
    return LinkProfile(**changes(texts))


def changes(texts: Mapping[str, str]) -> dict[str, Any]:
    """Fields of a LinkProfile and their values, of values as they are written in a file."""
    for key, value in texts.items():
        if key not in _READ:
            raise ProfileError(key, repr(value), f"a link has {', '.join(_READ)}")
    return {_READ[key][0]: _READ[key][1](key, value) for key, value in texts.items()}
