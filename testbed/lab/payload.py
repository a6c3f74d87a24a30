"""What a run brings along into the virtual machine: the project's tree, files, arguments, settings.

It becomes a cpio archive behind the first boot stage. The archive depends on contents only: no file
times, no path or user name of the host, so equal trees and arguments give equal bytes, and equal
bytes give equal virtual time. A module of the test bed is given only what it may use (DECISIVE):
what becomes of figures, tests and documents changes no byte of its runs.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.lab import cpio
from testbed.lab.image import GUEST, Image, LabError
from testbed.lab.luggage import Luggage, names, read

PROJECT = Path(__file__).parents[2]
DECISIVE = ("relocator", "testbed", "experiments/fio")
EVERYTHING = ("relocator", "testbed", "experiments", "tests", "pyproject.toml")
TREE_SUFFIXES = frozenset({".py", ".toml", ".fio", ".sh", ".c", ".h", ".j2"})
TREE_LIMIT_BYTES = 16 << 20


def initramfs(
    image: Image,
    arguments: Sequence[str],
    settings: Mapping[str, str],
    files: Mapping[str, Path] | None = None,
    *,
    project: Path = PROJECT,
    luggage: Luggage | None = None,
) -> bytes:
    """Everything the kernel unpacks before the root image is mounted; `files` by their names."""
    first_stage = {
        "init": read(GUEST / "init", executable=True),
        "bin/busybox": read(image.first_stage / "busybox", executable=True),
    }
    for module in sorted((image.first_stage / "modules").iterdir()):
        first_stage[f"modules/{module.name}"] = read(module, executable=False)
    ours = bool(arguments) and arguments[0].startswith("testbed.")
    places = DECISIVE if ours else EVERYTHING
    run = {f"lab/tree/{name}": file for name, file in tree(project, places).items()}
    run |= {
        f"lab/files/{name}": read(path, executable=False)
        for name, path in sorted((files or {}).items())
    }
    along = luggage or Luggage()
    run |= {f"lab/{name}": file for name, file in along.files().items()}
    run["lab/lab-init"] = read(GUEST / "lab-init", executable=True)
    run["lab/arguments"] = cpio.File(b"".join(os.fsencode(text) + b"\0" for text in arguments))
    run["lab/settings"] = cpio.File(_shell_words(settings))
    return cpio.archive(first_stage) + cpio.archive(run, directories=("lab/tree", "lab/files"))


def tree(
    project: Path, places: Sequence[str] = EVERYTHING, limit_bytes: int = TREE_LIMIT_BYTES
) -> dict[str, cpio.File]:
    """The project's own files in these places, by their relative path: what git would commit, of a
    known kind."""
    files: dict[str, cpio.File] = {}
    total_bytes = 0
    for name in names(project, places):
        path = project / name
        if path.suffix not in TREE_SUFFIXES or path.is_symlink() or not path.is_file():
            continue
        files[name] = read(path)
        total_bytes += len(files[name].content)
    if total_bytes > limit_bytes:
        largest = max(files, key=lambda name: len(files[name].content))
        raise LabError(
            f"the project's tree is {total_bytes >> 20} MiB; {limit_bytes >> 20} MiB at most "
            f"go into the lab; the largest file is {largest}"
        )
    return files


def _shell_words(settings: Mapping[str, str]) -> bytes:
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in sorted(settings.items())]
    return "".join(lines).encode()
