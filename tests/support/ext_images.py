"""Images with an ext file system, made by mke2fs, and the truth about them from dumpe2fs."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

Ranges = list[tuple[int, int]]


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
