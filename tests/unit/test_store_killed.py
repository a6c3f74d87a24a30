"""A process is killed in the midst of a write, or of a commit; then power may fail, too."""

import os
import signal
from pathlib import Path

import pytest

from relocator.store.bitmap import Bitmap
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


def killed(store: Store, between: Bitmap, block: int) -> None:
    """A guest writes a block, and the process is killed when it would set its bit `between`."""
    if (child := os.fork()) == 0:
        between.set = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        try:
            store.mark_dirty(block, block + 1)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    store.abandon()


@pytest.mark.parametrize("plane", ["dirty", "diverged"])
def test_a_write_asked_for_again_after_a_kill_has_diverged(tmp_path: Path, plane: str) -> None:
    store = opened(tmp_path)
    killed(store, getattr(store, plane), 7)
    store = opened(tmp_path)
    store.mark_dirty(7, 8)
    assert (store.dirty[7], store.diverged[7]) == (True, True)
    store.close()
    assert opened(tmp_path).diverged[7]


def test_who_finds_a_block_dirty_finds_that_it_has_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever it is looks without a lock, and may be answered before the first one goes on."""
    store = opened(tmp_path)
    found: list[bool] = []
    real = store.dirty.set
    monkeypatch.setattr(
        store.dirty, "set", lambda *run: (found.append(store.diverged[7]), real(*run))[1]
    )
    store.mark_dirty(7, 8)
    assert found == [True]


@pytest.mark.parametrize("power", ["stays", "fails"])
def test_what_an_older_version_left_dirty_has_diverged(
    tmp_path: Path, disk: Disk, power: str
) -> None:
    store = opened(tmp_path)
    for block in (7, FAR):
        store.dirty.set(block, block + 1)
        store._owe_locked(1, block, block + 1)
    store.mark_dirty(8, 9)
    store.commit()
    store.abandon()
    if power == "fails":
        disk.fail_power()
    store = opened(tmp_path)
    assert list(store.diverged.set_runs(0, store.diverged.bits)) == [(7, 9), (FAR, FAR + 1)]
    store.close()
    store = opened(tmp_path)
    assert list(store.diverged.set_runs(0, store.diverged.bits)) == [(7, 9), (FAR, FAR + 1)]


def test_nothing_has_diverged_where_the_disk_was_given_back(tmp_path: Path) -> None:
    """It would be kept when the source says that it is stale."""
    store = opened(tmp_path)
    store.update(standby=True)
    store.dirty.set(7, 8)
    store.abandon()
    assert not opened(tmp_path).diverged[7]
