"""Bitmaps that are newer in the journal: logs by debugfs, and by the kernel."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relocator.filesystem.extfs import group_range
from tests.support import ext_images as images
from tests.support.ext_images import change, examine, expected, logged

pytestmark = pytest.mark.skipif(bool(images.MISSING), reason=f"not installed: {images.MISSING}")


JOURNALS = [
    ("-t ext3 -b 1024", ""),
    ("-t ext4 -b 4096 -O ^metadata_csum", ""),
    ("-t ext4 -b 1024 -O ^metadata_csum,uninit_bg", ""),
    ("-t ext4 -b 1024", "-c -v 3"),
    ("-t ext4 -b 1024", "-c -v 2"),
    ("-t ext4 -b 1024 -O ^64bit", "-c -v 3"),
    ("-t ext4 -b 1024 -O ^64bit,^flex_bg", "-c -v 2"),
    ("-t ext4 -b 1024 -O bigalloc -C 4096", "-c -v 3"),
]


@pytest.fixture(params=JOURNALS, ids=" ".join)
def versions(request: pytest.FixtureRequest, folder: Path, files: Path) -> tuple[Path, Path, str]:
    """An image, the same with one more file, and how to open its journal."""
    options, version = request.param
    old = images.make(folder / "old.img", "32M", options.split(), files)
    return old, change(old, f"write {files}/deep/large more", copy="new.img"), version


def test_bitmaps_that_are_in_the_journal_only_are_found(versions: tuple[Path, Path, str]) -> None:
    old, new, version = versions
    assert expected(old) != expected(new)
    image = logged(old, new, version)
    answer = examine(image)
    assert list(answer.in_use()) == expected(new)
    assert answer.mounted and answer.caveat == "" and answer.doubts == {}
    images.run("debugfs", "-w", "-R", "jr", image)
    assert list(answer.in_use()) == expected(image)


def test_groups_of_an_uncommitted_transaction_are_wholly_in_use(
    versions: tuple[Path, Path, str],
) -> None:
    old, new, version = versions
    image = logged(old, new, version)
    raw = image.read_bytes()
    commit = raw.index(b"\xc0\x3b\x39\x98\0\0\0\2")
    image.write_bytes(raw[:commit] + bytes(1024) + raw[commit + 1024 :])
    answer, before, after = examine(image), examine(old), examine(new)
    for group in range(answer.layout.group_count):
        changed = list(before.group_in_use(group)) != list(after.group_in_use(group))
        assert (group in answer.doubts) == changed
        whole = [group_range(answer.layout, group)]
        assert list(answer.group_in_use(group)) == (
            whole if changed else list(before.group_in_use(group))
        )
    assert answer.mounted and answer.doubts and answer.caveat == ""
    assert all("not committed" in reason for reason in answer.doubts.values())


def test_a_journal_that_cannot_be_walked_is_a_caveat(folder: Path, files: Path) -> None:
    old = images.make(folder / "old.img", "32M", ["-t", "ext4", "-b", "1024"], files)
    new = change(old, f"write {files}/deep/large more", copy="new.img")
    image = logged(old, new, "-c -v 3")
    where = re.findall(r"\(0-\d+\):(\d+)", images.run("debugfs", "-R", "stat <8>", image))[0]
    with image.open("r+b") as file:
        for offset, caveat in ((1024 + 100, "descriptor"), (1024, "not where"), (100, "superb")):
            file.seek(int(where) * 1024 + offset)
            file.write(b"damage")
            file.flush()
            answer = examine(image)
            assert caveat in answer.caveat and answer.caveat in answer.summary()


def test_a_log_that_is_broken_off_is_a_caveat(folder: Path, files: Path) -> None:
    """Recovery would take the damaged second transaction for the end; the third tells."""
    old = images.make(folder / "old.img", "32M", ["-t", "ext4", "-b", "1024"], files)
    data = old.with_name("block")
    data.write_bytes(old.read_bytes()[2048:3072])
    image = change(old, "jo -c -v 3", *[f"jw -b 2 {data}"] * 3, "jc", copy="three.img")
    assert examine(image).caveat == ""
    raw = image.read_bytes()
    second = raw.index(b"\xc0\x3b\x39\x98\0\0\0\1\0\0\0\2")
    image.write_bytes(raw[:second] + b"damage" + raw[second + 6 :])
    assert "broken off" in examine(image).caveat


# -- the kernel's own -------------------------------------------------------------------------


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    """The image mounted through a loop device; skips where that can't be done."""
    at.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("mounting an image needs root")
    try:
        images.run("mount", "-o", "loop", image, at)
    except AssertionError as error:
        pytest.skip(f"no loop mounts here: {error}")
    try:
        yield at
    finally:
        images.run("umount", at)


@pytest.mark.parametrize(
    "options", ["-t ext3 -b 1024", "-t ext4 -b 4096", "-t ext4 -b 4096 -O bigalloc -C 16384"]
)
def test_the_disk_of_a_mounted_file_system(options: str, folder: Path, files: Path) -> None:
    """A copy taken while it is written to says what it says after recovery by debugfs."""
    image = images.make(folder / "mounted.img", "64M", options.split(), files)
    copy = folder / "snapshot.img"
    with mounted(image, folder / "mnt") as at:
        for number in range(6):
            shutil.copytree(files, at / f"tree{number}")
            if number % 2:
                shutil.rmtree(at / f"tree{number - 1}")
            os.sync()
        shutil.copytree(files, at / "last")
        with (at / "last" / "file9").open("rb") as file:
            os.fsync(file.fileno())
        images.run("cp", "--sparse=always", image, copy)
    answer = examine(copy)
    images.run("debugfs", "-w", "-R", "jr", copy)
    assert answer.mounted and answer.caveat == "" and answer.doubts == {}
    assert list(answer.in_use()) == expected(copy)
