"""How nbdkit is started: so that the interpreter inside it is the one it was built with.

The interpreter inside nbdkit takes its paths from the first `python3` in PATH, and from PYTHONHOME.
Under an activated virtual environment, conda or pyenv these belong to another Python, in which
there is no module `nbd`. So the `python3` of nbdkit's own installation is put first.
"""

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from relocator.errors import RelocatorError


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment to start nbdkit in: `given`, changed only where it must be."""
    wanted = {key: value for key, value in given.items() if key != "PYTHONHOME"}
    path = given.get("PATH", os.defpath)
    ours, found = _bin_with_python(path), shutil.which("python3", path=path)
    if ours is not None and (found is None or not Path(found).parent.samefile(ours)):
        wanted["PATH"] = f"{ours}{os.pathsep}{path}"
    return wanted


def _bin_with_python(path: str) -> Path | None:
    """The directory of the `python3` that was installed with nbdkit."""
    nbdkit = shutil.which("nbdkit", path=path)
    beside = [] if nbdkit is None else [Path(nbdkit).resolve().parent]
    for directory in (*beside, Path("/usr/bin")):
        if (directory / "python3").exists():
            return directory
    return None


def become(argv: list[str]) -> NoReturn:
    """Replace this process by the server `argv`.

    Raises:
        RelocatorError: it can't be started.
    """
    try:
        os.execvpe(argv[0], argv, environment(os.environ))
    except OSError as error:
        raise RelocatorError(f"nbdkit can't be started: {error.strerror}; see doctor") from error


def shell_line(argv: list[str]) -> str:
    """What to type into a shell for the same."""
    wanted = environment(os.environ)
    changes = ["-u", "PYTHONHOME"] if "PYTHONHOME" in os.environ else []
    if wanted.get("PATH") != os.environ.get("PATH"):
        changes.append(f"PATH={wanted['PATH']}")
    return shlex.join(["env", *changes, *argv] if changes else argv)
