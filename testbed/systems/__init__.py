"""The systems under test: what becomes of a guest's disk when the guest moves, by whom.

One file a system, or a family of them. `make` finds a system by its name and checks its settings;
to add one, write a file here with a class below `System`, or announce one from another project
(`testbed.discovery`).
"""

import sys
from collections.abc import Iterator, Sequence

from testbed import discovery
from testbed.network.wan import ProfileError
from testbed.systems.base import Place, System

__all__ = ["SYSTEMS", "Place", "System", "check", "make", "parse_settings"]


def _classes() -> Iterator[type[System]]:
    for module in discovery.modules(sys.modules[__name__]):
        for kind in vars(module).values():
            ours = isinstance(kind, type) and kind.__module__ == module.__name__
            if ours and issubclass(kind, System) and "name" in vars(kind):
                yield kind


SYSTEMS: dict[str, type[System]] = {
    kind.name: kind for kind in sorted(_classes(), key=lambda kind: kind.name)
}
SYSTEMS |= discovery.announced(discovery.SYSTEMS)


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` each, as they come after `--set`."""
    settings: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ProfileError("set", text, "give KEY=VALUE")
        settings[key] = value
    return settings


def check(name: str, settings: dict[str, str]) -> None:
    """ProfileError if there is no such system or it has no such setting."""
    if name not in SYSTEMS:
        raise ProfileError("system", name, f"must be one of {', '.join(SYSTEMS)}")
    for key, value in settings.items():
        keys = SYSTEMS[name].keys
        if key not in keys:
            right = f"{name} takes {', '.join(sorted(keys))}" if keys else f"{name} takes nothing"
            raise ProfileError("set", f"{key}={value}", right)


def make(name: str, settings: dict[str, str], place: Place) -> System:
    """The system, not yet started."""
    check(name, settings)
    return SYSTEMS[name](settings, place)
