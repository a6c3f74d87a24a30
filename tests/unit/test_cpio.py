"""The initramfs writer: what the format says, and equal bytes for equal contents.

That the kernel unpacks such an archive is seen in tests/lab, where it boots from one.
"""

import stat
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from testbed.lab.cpio import File, archive


class Entry(NamedTuple):
    name: str
    fields: list[int]  # the 13 of the newc header
    content: bytes


def entries(data: bytes) -> Iterator[Entry]:
    """A reader after the format's description, independent of the writer."""
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size_bytes, name_bytes = fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_bytes - 1].decode()
        at = (at + 110 + name_bytes + 3) // 4 * 4
        content = data[at : at + size_bytes]
        at = (at + size_bytes + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert at == len(data)
            return
        yield Entry(name, fields, content)


def test_contents_and_permissions_are_in_the_archive() -> None:
    files = {
        "init": File(b"#!/bin/sh\n", executable=True),
        "a/b/odd length": File(b"12345"),
        "a/empty": File(b""),
        "a/ümlaut.py": File(bytes(range(256)) * 100),
    }
    read = {entry.name: entry for entry in entries(archive(files, directories=("x/y",)))}
    assert set(read) == {*files, "a", "a/b", "x", "x/y"}
    for name, file in files.items():
        assert read[name].content == file.content
        assert read[name].fields[1] == stat.S_IFREG | (0o755 if file.executable else 0o644)
    assert read["x/y"].fields[1] == stat.S_IFDIR | 0o755


def test_owner_and_times_are_zero_and_inodes_differ() -> None:
    read = list(entries(archive({"a/b": File(b"1"), "c": File(b"2")})))
    assert all(entry.fields[2:4] == [0, 0] and entry.fields[5] == 0 for entry in read)
    assert len({entry.fields[0] for entry in read}) == len(read)


def test_order_of_the_files_does_not_matter() -> None:
    files = {"b": File(b"1"), "a/c": File(b"2"), "a/b": File(b"3")}
    assert archive(files) == archive(dict(reversed(files.items())))


def test_parents_come_before_their_files() -> None:
    data = archive({"z/y/x": File(b"")})
    assert data.index(b"z\0") < data.index(b"z/y\0") < data.index(b"z/y/x\0")


def test_archives_may_be_concatenated() -> None:
    assert len(archive({"abc": File(b"12345")})) % 4 == 0


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../b", "", ".", "a//b", "a/"])
def test_a_name_that_is_no_plain_relative_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="plain relative path"):
        archive({name: File(b"")})
