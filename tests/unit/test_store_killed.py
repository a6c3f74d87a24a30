"""A process is killed in the midst of a commit, and then power fails under the one that goes on."""

import os
from pathlib import Path

import pytest

from relocator.store.maps import PAGE_BYTES
from relocator.store.store import Store
from tests.support.stores import make_store

SIZE_BYTES = 64 << 20
SECTOR_BYTES = 512
FAR = 9000  # its bit is not in the sector with those of the first blocks


class Killed(BaseException):
    """The process is no more."""


class Disk:
    """What of a store's `map.durable` was synced; `kills`: whoever would sync it is killed."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kills = False
        self._path = directory / "map.durable"
        self._synced = b""
        self._patch = monkeypatch
        self._sync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self._fdatasync)

    def _fdatasync(self, fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink() == self._path:
            if self.kills:
                raise Killed
            self._synced = self._path.read_bytes()
        self._sync(fd)

    def fail_power(self, torn: int | None = None) -> None:
        """What was not synced is lost, but for the first sector of the slots `torn`, 0 or 1."""
        found = bytearray(self._synced)
        written = self._path.read_bytes()
        for at in range(0, len(found), PAGE_BYTES):
            if at // PAGE_BYTES % 2 == torn:
                found[at : at + SECTOR_BYTES] = written[at : at + SECTOR_BYTES]
        self._path.write_bytes(found)
        self._patch.setattr("relocator.store.store.boot_id", lambda: "another boot".ljust(36))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path / "s", monkeypatch)


def opened(tmp_path: Path) -> Store:
    return make_store(tmp_path / "s", SIZE_BYTES)


def write(store: Store, block: int) -> None:
    """A guest writes a block that was absent."""
    store.image.write(b"x" * 4096, block * 4096)
    with store.lock:
        store.mark_present_locked(block, block + 1)


def killed_in_a_commit(store: Store, disk: Disk) -> None:
    disk.kills = True
    with pytest.raises(Killed):
        store.commit()
    disk.kills = False
    store.abandon()


def test_a_flush_that_finds_the_map_written_still_makes_it_durable(
    tmp_path: Path, disk: Disk
) -> None:
    store = opened(tmp_path)
    write(store, 7)
    killed_in_a_commit(store, disk)
    store = opened(tmp_path)
    store.commit()  # the guest's flush, asked for again
    store.abandon()
    disk.fail_power()
    assert opened(tmp_path).present[7]


@pytest.mark.parametrize("torn", [0, 1])
def test_no_version_of_a_page_is_overwritten_before_the_next_is_durable(
    tmp_path: Path, disk: Disk, torn: int
) -> None:
    store = opened(tmp_path)
    write(store, 7)
    store.commit()
    write(store, 8)
    killed_in_a_commit(store, disk)
    store = opened(tmp_path)
    write(store, FAR)
    killed_in_a_commit(store, disk)
    disk.fail_power(torn)
    assert opened(tmp_path).present[7]
