"""Free blocks of a mounted file system, and what its guest had not committed yet at the switch."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support import ext_images as images
from tests.support.servers import Server, plugin, proxy, wait_for

pytestmark = pytest.mark.skipif(bool(images.MISSING), reason=f"not installed: {images.MISSING}")

PIECE = 4096
#: written by a guest into a block that it has allocated, but not committed
FRESH = random.Random(7).randbytes(PIECE)
COMMIT = b"\xc0\x3b\x39\x98\0\0\0\2"
UNSURE = "free blocks of whole disk are copied after all: the source has recorded"


@pytest.fixture(params=["-b 4096", "-b 1024"])
def commits(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """A file system, and the same after one, two and three commits of a mounted one's journal."""
    options = ["-t", "ext4", "-E", "nodiscard", *request.param.split()]
    made = images.make(tmp_path / "made.img", "32M", options, images.tree(tmp_path / "files"))
    data = tmp_path / "block"
    size = int(request.param.split()[1])
    data.write_bytes(made.read_bytes()[8 * size :][:size])
    three = images.change(made, "jo -c -v 3", *[f"jw -b 8 {data}"] * 3, "jc", copy="three.img")
    raw = three.read_bytes()
    ends = [raw.index(COMMIT + number.to_bytes(4, "big")) + size for number in (1, 2, 3)]
    log = [tmp_path / f"{number}.img" for number in (1, 2, 3)]
    for path, end in zip(log, ends, strict=True):
        path.write_bytes(raw[:end] + bytes(ends[2] - end) + raw[ends[2] :])
    return [made, *log]


@pytest.fixture
def disk(tmp_path: Path, commits: list[Path]) -> Path:
    """What the source serves; where it is free there are old data."""
    image = bytearray(commits[0].read_bytes())
    for first, end in images.free_ranges(commits[0]):
        image[first:end] = b"old data" * ((end - first) // 8)
    path = tmp_path / "disk.img"
    path.write_bytes(image)
    return path


def differences(old: Path, new: Path) -> Iterator[tuple[int, bytes]]:
    """What a guest writes that makes the one the other."""
    before, after = old.read_bytes(), new.read_bytes()
    for at in range(0, len(after), PIECE):
        if before[at : at + PIECE] != after[at : at + PIECE]:
            yield at, after[at : at + PIECE]


@pytest.mark.parametrize(
    ("restarted_after", "skips"), [(0, True), (1, True), (2, False), (3, False)]
)
def test_a_record_that_is_younger_than_two_commits_skips_nothing(
    tmp_path: Path, commits: list[Path], disk: Path, restarted_after: int, skips: bool
) -> None:
    steps = [list(differences(*pair)) for pair in pairwise(commits)]
    at, _ = max(images.free_ranges(commits[0]), key=lambda one: one[1] - one[0])
    at = -(-at // PIECE) * PIECE
    early, late = steps[:restarted_after], steps[restarted_after:]
    (late if skips else early).append([(at, FRESH)])  # two commits would have told of it
    if early:  # by a server with its maps in memory: they are forgotten
        with plugin(tmp_path, "before", f"disk={disk}") as server:
            write(server, early)
    with plugin(tmp_path, "target", f"disk={disk}") as source:
        write(source, late)
        with proxy(tmp_path, source, "skip-free=yes", "background=off") as server:
            wait_for(lambda: verdict(server.status()), "the verdict")
            server.control.call("set", background="on")
            status = server.wait()
    assert verdict(status) == ("skipped" if skips else "unsure")
    copy = (tmp_path / "store" / "disk.img").read_bytes()
    assert copy[at : at + PIECE] == FRESH
    if not skips:
        assert copy == disk.read_bytes()


def verdict(status: dict[str, Any]) -> str:
    """What was made of the free blocks, once that is known."""
    if any(note.startswith(UNSURE) for note in status["notes"]):
        return "unsure"
    return "skipped" if status["skipped_bytes"] > 8 << 20 else ""


def write(server: Server, steps: list[Any]) -> None:
    guest = server.connect()
    for step in steps:
        for at, data in step:
            guest.pwrite(data, at)
    guest.flush()
