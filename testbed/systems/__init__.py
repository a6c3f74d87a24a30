"""The systems under test: what becomes of a guest's disk when the guest moves, by whom.

One file a system, or a family of them. `make` finds a system by its name and checks its settings;
to add one, write a class below `System` and name it in the table here.
"""

from collections.abc import Sequence

from testbed.network.wan import ProfileError
from testbed.systems.base import Place, System
from testbed.systems.drbd import Drbd
from testbed.systems.nbdkit import Cache, CopyOnWrite
from testbed.systems.offline import Offline
from testbed.systems.qemu import Mirror, Stream
from testbed.systems.relocator import Relocator
from testbed.systems.remote import Remote, Stay
from testbed.systems.xnbd import Xnbd

__all__ = ["SYSTEMS", "Place", "System", "check", "make", "parse_settings"]

SYSTEMS: dict[str, type[System]] = {
    system.name: system
    for system in (
        *(Relocator, Remote, Stay, Offline, Mirror, Stream),
        *(CopyOnWrite, Cache, Drbd, Xnbd),
    )
}


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
