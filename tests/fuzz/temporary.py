"""A directory for as long as this process lives: what is made once for all inputs."""

import atexit
import shutil
import tempfile
from pathlib import Path


def directory(where: Path | str | None = None) -> Path:
    """A fresh one, in `where`; gone when the process ends, after what was registered later."""
    made = Path(tempfile.mkdtemp(prefix="relocator-fuzz-", dir=where))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
