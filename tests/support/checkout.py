"""The project as somebody gets it who clones it: what git knows of it or would take in."""

import os
import shutil
import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[2]
DAY = 1_700_000_000


def copy_to(directory: Path) -> Path:
    """A copy of the checkout below `directory`, without results and whatever git ignores."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, capture_output=True, check=True).stdout
    place = directory / "relocator"
    for name in map(os.fsdecode, names.split(b"\0")):
        path = PROJECT / name
        if name and path.is_file() and not name.startswith("results/"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place / name)
    return place
