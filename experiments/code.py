"""Which code a run was made with.

`describe` is for people. `tree` is a digest of every file of the project that travels into the lab.
`run` is a digest of those that decide what a run does, the product and the test bed: a run stays
good as long as they are the same, whatever becomes of figures and tests.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from testbed import payload

DECISIVE = ("relocator/", "testbed/", "experiments/fio/")


def version(project: Path = payload.PROJECT) -> dict[str, str]:
    """`describe`, `tree` and `run` of the code as it stands on the disk now."""
    tree = payload.tree(project)
    return {
        "describe": _describe(project),
        "tree": _digest({name: file.content for name, file in tree.items()}),
        "run": _digest(
            {name: file.content for name, file in tree.items() if name.startswith(DECISIVE)}
        ),
    }


def _describe(project: Path) -> str:
    command = ["git", "-C", str(project), "describe", "--always", "--dirty", "--tags"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
