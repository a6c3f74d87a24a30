"""The kernel can't write one of the store's pages: nobody may rest on what is in its cache only.

The store is on ext4 on a loop device, whose file is on a tmpfs that has no room for some pages.
"""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from relocator.errors import StoreError
from relocator.store.maps import PAGE_BYTES, PLANES
from relocator.store.meta import Meta
from relocator.store.opening import open_store
from relocator.store.store import Store
from tests.crash.needs import FILE_SYSTEM
from tests.crash.power import REBOOTED, mounted
from tests.support.servers import plugin, target, wait_for

pytestmark = FILE_SYSTEM
SIZE_BYTES = 64 << 20
DISK_BYTES = 48 << 20
BLOCK = 4096
LIVE_DIRTY_PAGE = 3  # of `map.live`: the first of that plane
_FIBMAP = 1  # linux/fs.h
_PAGEOUT = 21  # MADV_PAGEOUT, asm-generic/mman-common.h: what reclaim does when memory is short


class Thin:
    """A file system whose disk is thin: what it has no room for can't be written."""

    def __init__(self, directory: Path) -> None:
        self._room = directory / "room"
        self._room.mkdir()
        self._disk = self._room / "disk"
        self.path = directory / "mounted"
        self._filler = self._room / "filler"

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """All of it has its room; the file system is made, and mounted."""
        tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES + (16 << 20)}", "tmpfs"]
        subprocess.run([*tmpfs, str(self._room)], check=True)
        try:
            self._disk.touch()
            os.truncate(self._disk, DISK_BYTES)
            lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
            mkfs = ["mkfs.ext4", "-q", "-b", "4096", "-E", lazy, str(self._disk)]
            subprocess.run(mkfs, check=True)
            with self._disk.open("r+b") as disk:
                os.posix_fallocate(disk.fileno(), 0, DISK_BYTES)
            with mounted(self._disk, self.path, "ext4"):
                yield self.path
        finally:
            subprocess.run(["umount", str(self._room)], check=True)

    @contextmanager
    def lacking(self, path: Path, pages: list[int]) -> Iterator[None]:
        """There is no room for these pages of a file meanwhile, and none for anything new."""
        os.sync()
        with path.open("rb") as file:
            places = [
                struct.unpack("i", fcntl.ioctl(file, _FIBMAP, struct.pack("i", page)))[0]
                for page in pages
            ]
        assert all(places), "a page that was never written has no place"
        for place in places:
            punch = ["fallocate", "--punch-hole", "--offset", str(place * 4096), "--length", "4096"]
            subprocess.run([*punch, str(self._disk)], check=True)
        with self._filler.open("wb", buffering=0) as filler, pytest.raises(OSError, match="space"):
            while True:
                filler.write(bytes(4096))
        try:
            yield
        finally:
            self._filler.unlink()


@pytest.fixture
def thin(tmp_path: Path) -> Iterator[Thin]:
    made = Thin(tmp_path)
    with made.mounted():
        yield made


@contextmanager
def opened(thin: Thin) -> Iterator[Store]:
    """A proxy's store that is there, its image elsewhere; its process is killed at the end."""
    image = thin.path.with_name("disk.img")
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(SIZE_BYTES)
    fresh = Meta(
        "b" * 32,
        SIZE_BYTES,
        BLOCK,
        source="nbd://source",
        complete=False,
        standby=False,
        disk=str(image),
    )
    store = open_store(thin.path / "store", fresh)
    try:
        yield store
    finally:
        store.abandon()


def write(store: Store, block: int) -> None:
    """A guest writes a block."""
    store.mark_dirty(block, block + 1)
    store.image.write(b"x" * BLOCK, block * BLOCK)
    with store.lock:
        store.mark_present_locked(block, block + 1)


def write_all_pages(store: Store) -> None:
    """Both versions of each page of the maps are on the disk."""
    for block in (9000, 9001, 9002):
        write(store, block)
        store.commit()
    os.sync()


def forget(path: Path) -> None:
    """What the cache has of a file is wanted for something else; as it is clean, it goes."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def live_pages(store: Store) -> list[int]:
    """Of `map.live`: the first page of each plane."""
    plane = -(-store.geometry.total_blocks // 8 // PAGE_BYTES) + 1
    return [1 + plane * index for index in range(len(PLANES))]


def test_bits_that_could_not_be_written_back_end_what_rests_on_them(thin: Thin) -> None:
    with opened(thin) as store:
        write_all_pages(store)
        with thin.lacking(thin.path / "store" / "map.live", live_pages(store)):
            write(store, 7)
            store.commit()
            os.sync()
        with pytest.raises(StoreError, match=r"the kernel could not write map\.live"):
            store.check()
        for again in (store.check, store.commit):
            with pytest.raises(StoreError, match=r"map\.live"):
                again()
        store._live._memory.madvise(_PAGEOUT)
        assert not store.present[7], "reclaim has shown nothing: the test proves nothing"
    with opened(thin) as store:
        for plane in (store.present, store.dirty, store.diverged):
            assert plane[7]
        store.check()


def test_bits_that_were_lost_after_the_process_died_are_not_believed(thin: Thin) -> None:
    with opened(thin) as store:
        write_all_pages(store)
        with thin.lacking(thin.path / "store" / "map.live", live_pages(store)):
            write(store, 7)
            store.commit()
            os.sync()
    forget(thin.path / "store" / "map.live")
    with opened(thin) as store:
        for plane in (store.present, store.dirty, store.diverged):
            assert plane[7]


def test_a_server_whose_bits_could_not_be_written_back_ends_and_goes_on(
    thin: Thin, tmp_path: Path
) -> None:
    maps = thin.path / "store"
    with target(tmp_path, SIZE_BYTES, f"store={maps}", "block=4K") as server:
        guest = server.connect()
        for block in (9000, 9001, 9002):
            guest.pwrite(b"x" * BLOCK, block * BLOCK)
            guest.flush()
        with thin.lacking(maps / "map.live", [LIVE_DIRTY_PAGE]):
            guest.pwrite(b"y" * BLOCK, 7 * BLOCK)
            guest.flush()
            os.sync()
        wait_for(lambda: server.process.poll() is not None, "the server to end")
        assert "the kernel could not write map.live" in server.log.read_text()
    with plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}", f"store={maps}") as server:
        assert server.connect().pread(BLOCK, 7 * BLOCK) == b"y" * BLOCK


def test_a_flush_after_a_failed_one_and_a_restart_outlives_a_power_failure(thin: Thin) -> None:
    with opened(thin) as store:
        write_all_pages(store)
        with thin.lacking(thin.path / "store" / "map.durable", [0, 1]):
            write(store, 7)
            with pytest.raises(StoreError):
                store.commit()
    with opened(thin) as store:
        assert not store.present[7]
        write(store, 7)
        store.commit()
    subprocess.run(["mount", "-o", "remount,ro", str(thin.path)], check=True)
    subprocess.run(["mount", "-o", "remount,rw", str(thin.path)], check=True)
    forget(thin.path / "store" / "map.durable")
    with patch("relocator.store.store.boot_id", lambda: REBOOTED), opened(thin) as store:
        assert store.present[7]
