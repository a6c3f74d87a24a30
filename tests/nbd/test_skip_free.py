"""Free blocks: of a mounted file system, of another disk, and when the proxy is ended meanwhile."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support import ext_images as images
from tests.support.servers import Server, mistaken, nbdkit, plugin, proxy, wait_for

pytestmark = pytest.mark.skipif(bool(images.MISSING), reason=f"not installed: {images.MISSING}")

PIECE = 4096
#: written by a guest into a block that it has allocated, but not committed
FRESH = random.Random(7).randbytes(PIECE)
COMMIT = b"\xc0\x3b\x39\x98\0\0\0\2"
#: fills slowly, a little at a time, and lets go of its store slowly, as a busy machine does
SLOW = """
import time as _time
from relocator.copying import hydration as _hydration
from relocator.store import image as _image, store as _store
_hydration._WRITE_STEP_BYTES = _hydration._PUNCH_STEP_BYTES = 64 << 10
_zero, _abandon = _image.Image.zero, _store.Store.abandon
def _zero_slowly(self, offset, length, *, punch):
    _time.sleep(0.02)
    return _zero(self, offset, length, punch=punch)
def _abandon_slowly(self):
    _time.sleep(0.5)
    _abandon(self)
_image.Image.zero, _store.Store.abandon = _zero_slowly, _abandon_slowly
"""
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
    ("restarted_after", "skips", "block", "copys_block"),
    [
        (0, True, 4096, 4096),
        (1, True, 4096, 4096),
        (2, False, 4096, 4096),
        (3, False, 4096, 4096),
        (2, False, 65536, 4096),  # the commits share a block
        (1, True, 4096, 65536),
        (2, False, 4096, 65536),
    ],
)
def test_a_record_that_is_younger_than_two_commits_skips_nothing(
    tmp_path: Path,
    commits: list[Path],
    disk: Path,
    *,
    restarted_after: int,
    skips: bool,
    block: int,
    copys_block: int,
) -> None:
    steps = [list(differences(*pair)) for pair in pairwise(commits)]
    at, _ = max(images.free_ranges(commits[0]), key=lambda one: one[1] - one[0])
    at = -(-at // PIECE) * PIECE
    early, late = steps[:restarted_after], steps[restarted_after:]
    (late if skips else early).append([(at, FRESH)])  # two commits would have told of it
    if early:  # by a server with its maps in memory: they are forgotten
        with plugin(tmp_path, "before", f"disk={disk}") as server:
            write(server, early)
    with plugin(tmp_path, "target", f"disk={disk}", f"block={block}") as source:
        write(source, late)
        keys = ("skip-free=yes", "background=off", f"block={copys_block}")
        with proxy(tmp_path, source, *keys) as server:
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


def test_free_blocks_of_another_disk_at_the_sources_address_are_not_free_here(
    tmp_path: Path,
) -> None:
    options = ["-t", "ext4", "-b", "4096", "-E", "nodiscard"]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "large").write_bytes(b"relocate" * (10 << 17))
    right = images.make(tmp_path / "right.img", "16M", options, tmp_path / "files")
    other = images.make(tmp_path / "other.img", "16M", options, None)
    served = tmp_path / "served.img"

    def source(image: Path) -> Any:
        served.unlink(missing_ok=True)
        served.symlink_to(image)
        return nbdkit(tmp_path, "source", ["file", str(served)])

    keys = ("background=off", "readahead=0", "retry-timeout=1")
    with source(right) as here, proxy(tmp_path, here, *keys) as server:
        server.connect().pread(PIECE, 0)
    with proxy(tmp_path, here.uri, "skip-free=yes", *keys) as server:
        with source(other):
            wait_for(lambda: said(server), "the verdict")
        with source(right):
            wait_for(lambda: not server.status()["faults"]["handover"], "the right disk")
            server.control.call("set", background="on")
            assert server.wait()["skipped_bytes"] > 0
            assert server.connect().pread(PIECE, 0) == right.read_bytes()[:PIECE]
    check_copy(tmp_path, right)


def said(server: Server) -> bool:
    """Whether free blocks were skipped, or another disk was told of."""
    status = server.status()
    return "another disk" in str(status["faults"]["handover"]) or status["skipped_bytes"] > 0


def check_copy(tmp_path: Path, image: Path) -> None:
    """What is in use is here, byte by byte; what is free is as it was, or zeros."""
    copy, whole = (tmp_path / "store" / "disk.img").read_bytes(), image.read_bytes()
    assert len(copy) == len(whole)
    at = 0
    for first, end in [*images.free_ranges(image), (len(whole), len(whole))]:
        assert copy[at:first] == whole[at:first]
        for piece in range(first, end, 512):
            assert copy[piece : piece + 512] in (bytes(512), whole[piece : piece + 512])
        at = end


def test_a_proxy_that_is_ended_while_it_skips_free_blocks_starts_again(
    tmp_path: Path, disk: Path
) -> None:
    with nbdkit(tmp_path, "source", ["file", str(disk)]) as source:
        keys = ("skip-free=yes", "background=off", "readahead=0")
        with proxy(tmp_path, source, *keys, file=mistaken(tmp_path, SLOW)) as server:
            wait_for(lambda: server.status()["skipped_bytes"], "some of them")
            assert server.end() == 0, server.log.read_text()
        with proxy(tmp_path, source, *keys) as server:
            server.control.call("set", background="on")
            status = server.wait()
            assert status["skipped_bytes"] > 1 << 20, "it was ended too late"
    check_copy(tmp_path, disk)
