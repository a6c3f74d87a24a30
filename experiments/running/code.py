"""Which code a run was made with.

`describe` is for people. `tree` is a digest of all of the project's own files. `run` is one of
those that travel into the lab with a run, the product and the test bed: a run stays good, and would
be the same again, as long as they are the same, whatever becomes of figures and tests.
"""

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from testbed.lab import payload


def version(project: Path = payload.PROJECT) -> dict[str, str]:
    """`describe`, `tree` and `run` of the code as it stands on the disk now."""
    return {
        "describe": _describe(project),
        "tree": digest(project, payload.EVERYTHING),
        "run": digest(project),
    }


def _describe(project: Path) -> str:
    command = ["git", "-C", str(project), "describe", "--always", "--dirty", "--tags"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def digest(project: Path, places: Sequence[str] = payload.DECISIVE) -> str:
    """16 digits for the names and contents of the files that the lab would be given of `places`."""
    found = hashlib.sha256()
    for name, file in sorted(payload.tree(project, places).items()):
        found.update(f"{name}\0{len(file.content)}\0".encode())
        found.update(file.content)
    return found.hexdigest()[:16]
