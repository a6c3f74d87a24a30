"""What can be chosen by name: ours, a file each, and what other projects announce.

Ours is found by looking: every module of a package is imported, and what it offers is taken.
Another project announces its own as entry points in its pyproject.toml:

    [project.entry-points."relocator.systems"]      a class below testbed.systems.System
    [project.entry-points."relocator.workloads"]    a function (argument, settings) -> Workload
    [project.entry-points."relocator.links"]        a package whose *.toml files are links

Such a project, installed beside ours, travels into the lab by itself (`testbed.lab.luggage`).
"""

import pkgutil
from collections.abc import Iterator
from importlib import import_module, metadata
from types import ModuleType
from typing import Any

LINKS, SYSTEMS, WORKLOADS = "relocator.links", "relocator.systems", "relocator.workloads"
GROUPS = (LINKS, SYSTEMS, WORKLOADS)


class AnnouncementError(ValueError):
    """What another project announces can't be used; names the project and the entry point."""


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """Every module of a package of ours, by name."""
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda one: one.name):
        if found.name != "__main__":
            yield import_module(f"{package.__name__}.{found.name}")


def announced(group: str) -> dict[str, Any]:
    """What others offer in a group, by name.

    Raises:
        AnnouncementError: it can't be imported, or two have the same name.
    """
    result: dict[str, Any] = {}
    for entry in metadata.entry_points(group=group):
        owner = entry.dist.name if entry.dist is not None else "?"
        where = f"{entry.name} = {entry.value} in {group}, announced by {owner}"
        if entry.name in result:
            raise AnnouncementError(f"{where}: another project announces the same name")
        try:
            result[entry.name] = entry.load()
        except (ImportError, AttributeError) as error:
            raise AnnouncementError(f"{where}: {error}") from error
    return result


def announcing() -> list[str]:
    """The names of the distributions that announce anything."""
    owners = {
        entry.dist.name
        for group in GROUPS
        for entry in metadata.entry_points(group=group)
        if entry.dist is not None
    }
    return sorted(owners)
