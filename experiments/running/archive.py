"""Runs in one file, as they are published: runs.tar.xz holds runs/CELL/ with all that a run left.

Who has it looks a run up without making it, compares one of his own with it byte by byte, and goes
on from it: `unpack` puts the runs into an output directory, where those of the same command and
code are not made again. The same runs give the same bytes, whoever packs them.
"""

import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from experiments.running import runner

NAME = "runs.tar.xz"
RUNS = "runs"
LZMA_PRESET = 9  # its window holds some hundred runs: what they have in common is stored once


class ArchiveError(Exception):
    """It is no archive of runs; the message names it and what is wrong."""


def pack(out: Path, cells: Iterable[str], path: Path) -> None:
    """Writes the runs of `cells`, which stand in out/runs, to `path`."""
    with tarfile.open(path, "w:xz", preset=LZMA_PRESET) as tar:
        for cell in sorted(cells):
            place = runner.directory(out, cell)
            for file in sorted(found for found in place.rglob("*") if found.is_file()):
                member = tarfile.TarInfo(f"{RUNS}/{cell}/{file.relative_to(place).as_posix()}")
                member.size = file.stat().st_size
                with file.open("rb") as content:
                    tar.addfile(member, content)


def unpack(path: Path, out: Path) -> list[str]:
    """Puts the archive's runs into out/runs where none stands yet; their cells.

    All of the archive is read before the first run gets its place: a damaged one adds nothing.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=out) as name:
        building = Path(name)
        try:
            with lzma.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    _extract(tar, member, building)
                stream.read()  # to its end, where the checksum is
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise ArchiveError(f"{path}: can't be read as an archive of runs: {error}") from error
        runs = sorted(found.parent for found in building.rglob("run.json"))
        if not runs:
            raise ArchiveError(f"{path}: has no {RUNS}/CELL/run.json")
        added = []
        for place in runs:
            cell = place.relative_to(building / RUNS).as_posix()
            if runner.outcome(out, cell) is None:
                runner.publish(out, cell, place)
                added.append(cell)
    return added


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, building: Path) -> None:
    """One file; nothing is written outside `building`, and nothing but files."""
    parts = PurePosixPath(member.name).parts
    if not member.isfile() or parts[0] != RUNS or ".." in parts:
        raise tarfile.TarError(f"{member.name!r} is no file of a run ({RUNS}/CELL/FILE)")
    content = tar.extractfile(member)
    assert content is not None
    file = building.joinpath(*parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as written:
        shutil.copyfileobj(content, written)
