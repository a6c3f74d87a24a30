"""What a run of another project brings into the lab besides ours: its tree, and Python packages.

    /lab/project    the project's directory: what git would commit, of any kind
    /lab/packages   installed distributions, with what they announce (`testbed.discovery`)

Both are on Python's path there (a directory `src` of the project's too). A distribution that was
installed in place (`pip install -e`) travels as its announcements; its code is in the project.
"""

import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from testbed import discovery
from testbed.lab import cpio
from testbed.lab.image import LabError

OURS = "relocator"
LIMIT_BYTES = 128 << 20
_ANNOUNCING = ("METADATA", "entry_points.txt")
_LEFT = ("__pycache__", "node_modules")


@dataclass(frozen=True)
class Luggage:
    """A project's directory, and the names of installed distributions; those that announce systems,
    workloads or links always come along."""

    project: Path | None = None
    distributions: tuple[str, ...] = ()

    def files(self) -> dict[str, cpio.File]:
        """Everything by its path below /lab.

        Raises:
            LabError: a distribution is not installed, or it is too much.
        """
        found: dict[str, cpio.File] = {}
        if self.project is not None:
            for name in names(self.project):
                path = self.project / name
                if path.is_file():
                    found[f"project/{name}"] = read(path)
        announcing = (name for name in discovery.announcing() if name != OURS)
        for name in sorted({*self.distributions, *announcing}):
            found |= _distribution(name, self.project)
        total_bytes = sum(len(file.content) for file in found.values())
        if total_bytes > LIMIT_BYTES:
            largest = max(found, key=lambda name: len(found[name].content))
            raise LabError(
                f"{total_bytes >> 20} MiB would travel into the lab, {LIMIT_BYTES >> 20} at most "
                f"can; the largest file is {largest}; what git ignores stays here"
            )
        return found


def _distribution(name: str, project: Path | None) -> dict[str, cpio.File]:
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise LabError(f"package '{name}': is not installed here: pip install {name}") from error
    files = found.files
    if files is None:
        raise LabError(f"package '{name}': it doesn't say which files are its own (no RECORD)")
    in_place = any(file.name.startswith("__editable__") for file in files)
    if in_place and project is None:
        raise LabError(
            f"package '{name}': is installed in place, so its code would not come along: "
            "give its directory (--project), or install it without -e"
        )
    result: dict[str, cpio.File] = {}
    for file in files:
        path = Path(str(found.locate_file(file)))
        if ".." in file.parts or "__pycache__" in file.parts or not path.is_file():
            continue
        about = file.parent.suffix == ".dist-info"
        if about and file.name not in _ANNOUNCING:
            continue  # RECORD and such tell of this machine
        if about or not in_place:
            result[f"packages/{file.as_posix()}"] = read(path)
    return result


def read(path: Path, executable: bool | None = None) -> cpio.File:
    """A file; whether it may be executed is as here, unless it is said."""
    may = os.access(path, os.X_OK) if executable is None else executable
    return cpio.File(path.read_bytes(), may)


def names(directory: Path, places: Sequence[str] = ()) -> list[str]:
    """What git would commit of a directory (of some places in it), as relative paths, sorted; where
    it knows of nothing there, all but caches, environments and hidden files."""
    command = ["git", "-C", str(directory), "ls-files", "-z", "--cached", "--others"]
    command += ["--exclude-standard", "--", *places]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return sorted(_walk(directory, places))
    listed = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    if done.returncode != 0 or not listed:  # no checkout, not ours to ask about, or ignored as one
        return sorted(_walk(directory, places))
    return sorted(listed)


def _walk(directory: Path, places: Iterable[str]) -> Iterable[str]:
    for place in places or (".",):
        if (directory / place).is_file():
            yield place
        for at, directories, files in os.walk(directory / place):
            directories[:] = [
                name
                for name in directories
                if not (name.startswith(".") or name in _LEFT or name.endswith(".egg-info"))
                and not Path(at, name, "pyvenv.cfg").exists()
            ]
            for name in files:
                if not name.startswith("."):
                    yield Path(at, name).relative_to(directory).as_posix()
