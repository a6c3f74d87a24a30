"""Which lines a test ran in the lab, put beside those that were run here.

If coverage.py measures here (pytest-cov, or `coverage run -m pytest`), it travels along and
measures the same there. What it found is left beside the data file here, as of a further process:
pytest-cov combines them by itself, else `coverage combine --append` does.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DATA = ".coverage"


def here() -> Any | None:
    """The Coverage that measures here, or None."""
    coverage = sys.modules.get("coverage")
    return None if coverage is None else coverage.Coverage.current()


def wanted(measuring: Any, root: Path, there: Path) -> dict[str, Any]:
    """What to measure: settings of a Coverage, with the paths as they are there."""
    config = measuring.config

    def moved(paths: list[str] | None) -> list[str] | None:
        return None if paths is None else [_moved(path, root, there) for path in paths]

    return {
        "branch": bool(config.branch),
        "source": moved(config.source),
        "include": moved(config.run_include) or None,
        "omit": moved(config.run_omit) or None,
    }


def _moved(path: str, root: Path, there: Path) -> str:
    return str(there / Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


@contextmanager
def measured(settings: Mapping[str, Any] | None, out: Path) -> Iterator[None]:
    """Measures what runs in the block, if that was asked for."""
    if settings is None:
        yield
        return
    from coverage import Coverage

    measuring = Coverage(data_file=str(out / DATA), config_file=False, **settings)
    measuring.start()
    try:
        yield
    finally:
        measuring.stop()
        measuring.save()


def bring(measuring: Any, out: Path, root: Path, there: Path) -> None:
    """Puts what was measured there beside the data file here, with the paths of here."""
    from coverage import CoverageData

    if not (out / DATA).exists():
        return
    found = CoverageData(basename=str(out / DATA))
    found.read()
    base = Path(measuring.config.data_file).absolute()
    mine = CoverageData(basename=f"{base}.lab-{out.name}")
    mine.erase()
    mine.update(found, map_path=lambda path: _moved(path, there, root))
    mine.close()
