"""Images with an ext file system, made by mke2fs, and the truth about them from dumpe2fs."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from relocator.filesystem import extfs
from relocator.filesystem.ext_layout import parse
from relocator.filesystem.extfs import ExtFilesystem
from relocator.filesystem.rounds import Rounds, serve
from relocator.store.geometry import Extent

Ranges = list[tuple[int, int]]
Read = Callable[[int, int], bytes]
T = TypeVar("T")

TOOLS = ("mke2fs", "dumpe2fs", "debugfs", "e2fsck", "resize2fs", "tune2fs")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]


def run(*command: str | Path) -> str:
    """Run one of e2fsprogs' tools; its output, or a failure that shows it."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command} -> {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def tree(folder: Path) -> Path:
    """A few files of odd sizes, enough to fragment a small file system's first groups."""
    folder.mkdir(exist_ok=True)
    for number in range(40):
        (folder / f"file{number}").write_bytes(bytes([number + 1]) * (number * 3571 % 90_000))
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / "large").write_bytes(b"relocate" * 150_000)
    return folder


def make(path: Path, size: str, options: Sequence[str], files: Path | None) -> Path:
    """A new sparse image of `size` (mke2fs's notation) with `files` copied in."""
    path.unlink(missing_ok=True)
    copied = ["-d", files] if files else []
    run("mke2fs", "-q", "-F", *options, *copied, path, size)
    return path


def free_ranges(path: Path) -> Ranges:
    """The free byte ranges by dumpe2fs, ascending, merged.

    With clusters dumpe2fs names the first block of a range's last cluster; its end is meant.
    """
    text = run("dumpe2fs", path)
    block_bytes = int(re.findall(r"^Block size: +(\d+)$", text, re.MULTILINE)[0])
    cluster = re.findall(r"^Cluster size: +(\d+)$", text, re.MULTILINE)
    unit_blocks = int(cluster[0]) // block_bytes if cluster else 1
    end_bytes = int(re.findall(r"^Block count: +(\d+)$", text, re.MULTILINE)[0]) * block_bytes
    found: Ranges = []
    for line in re.findall(r"^  Free blocks: (.*)$", text, re.MULTILINE):
        for low, high in re.findall(r"(\d+)(?:-(\d+))?", line):
            end = (int(high or low) + unit_blocks) * block_bytes
            found.append((int(low) * block_bytes, min(end, end_bytes)))
    return merged(found)


def merged(ranges: Ranges) -> Ranges:
    result: Ranges = []
    for low, high in sorted(ranges):
        if result and low <= result[-1][1]:
            result[-1] = (result[-1][0], max(high, result[-1][1]))
        else:
            result.append((low, high))
    return result


def complement(ranges: Ranges, size_bytes: int) -> Ranges:
    """What of `size_bytes` is not in `ranges` (ascending, merged)."""
    edges = [0, *(edge for pair in ranges for edge in pair), size_bytes]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(low, high) for low, high in pairs if low < high]


def settle(rounds: Rounds[T], read: Read) -> T:
    """Serve all rounds of a reader, one read after the other."""
    return serve(rounds, lambda wanted: [read(*extent) for extent in wanted])


def reader(path: Path, log: list[Extent] | None = None) -> Read:
    def read(offset: int, length: int) -> bytes:
        if log is not None:
            log.append(Extent(offset, length))
        with path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    return read


def verdict(image: bytes | bytearray) -> ExtFilesystem | str:
    """What is made of an image in memory."""
    return settle(extfs.survey(len(image)), lambda at, length: bytes(image[at : at + length]))


def examine(path: Path, log: list[Extent] | None = None) -> ExtFilesystem:
    answer = settle(extfs.survey(path.stat().st_size), reader(path, log))
    assert isinstance(answer, ExtFilesystem), answer
    return answer


def expected(path: Path) -> Ranges:
    return complement(free_ranges(path), path.stat().st_size)


def assert_exact(path: Path) -> ExtFilesystem:
    """The image is believed wholly and in use is what dumpe2fs does not call free."""
    answer = examine(path)
    assert list(answer.in_use()) == expected(path)
    assert answer.in_use_bytes == sum(end - first for first, end in answer.in_use())
    assert answer.doubts == {} and answer.caveat == ""
    return answer


def change(path: Path, *requests: str, copy: str = "changed.img") -> Path:
    """A copy of an image after some debugfs requests."""
    changed, script = path.with_name(copy), path.with_name("requests")
    shutil.copyfile(path, changed)
    script.write_text("\n".join(requests) + "\n")
    run("debugfs", "-w", "-f", script, changed)
    return changed


def changed_metadata(old: Path, new: Path) -> list[int]:
    """The descriptors and bitmaps in which two images differ, by block number."""
    before, after = old.read_bytes(), new.read_bytes()
    text = run("dumpe2fs", new)
    size = int(re.findall(r"^Block size: +(\d+)$", text, re.MULTILINE)[0])
    places = re.findall(
        r"(?:(?:Block|Inode) bitmap at|Group descriptors at) (\d+)(?:-(\d+))?", text
    )
    blocks = {n for low, high in places for n in range(int(low), int(high or low) + 1)}
    return [n for n in sorted(blocks) if before[n * size :][:size] != after[n * size :][:size]]


def logged(old: Path, new: Path, version: str) -> Path:
    """`old` with what makes it `new` in its journal only."""
    size = parse(old.read_bytes()[1024:2048], old.stat().st_size).block_bytes
    blocks, data = changed_metadata(old, new), old.with_name("blocks")
    raw = new.read_bytes()
    data.write_bytes(b"".join(raw[n * size :][:size] for n in blocks))
    numbers = ",".join(map(str, blocks))
    return change(old, f"jo {version}", f"jw -b {numbers} {data}", "jc", copy="logged.img")
