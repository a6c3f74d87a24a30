"""Which code a run was made with.

`describe` is for people. `tree` is a digest of all of the project's own files. `run` is one of
those that travel into the lab with a run, the product and the test bed: a run stays good, and would
be the same again, as long as they are the same, whatever becomes of figures and tests. `others`
is one of what other projects bring along, which decides about runs of their systems and workloads.
"""

import functools
import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed import discovery
from testbed.lab import cpio, luggage, payload


def version(project: Path = payload.PROJECT) -> dict[str, str]:
    """`describe`, `tree`, `run` and `others` of the code as it stands on the disk now.

    Raises:
        LabError: what another project announces could not travel.
    """
    return {
        "describe": _describe(project),
        "tree": digest(project, payload.EVERYTHING),
        "run": digest(project),
        "others": _digest(luggage.Luggage().files()),
    }


@functools.cache
def of_others() -> frozenset[str]:
    """The names of the systems and workloads that other projects announce."""
    groups = (discovery.SYSTEMS, discovery.WORKLOADS)
    return frozenset(name for group in groups for name in discovery.announced(group))


def _describe(project: Path) -> str:
    command = ["git", "-C", str(project), "describe", "--always", "--dirty", "--tags"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def digest(project: Path, places: Sequence[str] = payload.DECISIVE) -> str:
    """16 digits for the names and contents of the files that the lab would be given of `places`."""
    return _digest(payload.tree(project, places))


def _digest(files: Mapping[str, cpio.File]) -> str:
    found = hashlib.sha256()
    for name, file in sorted(files.items()):
        found.update(f"{name}\0{len(file.content)}\0".encode())
        found.update(file.content)
    return found.hexdigest()[:16]
