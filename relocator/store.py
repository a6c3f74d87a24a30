"""The local store of a proxy: the raw image, the maps, and the commit that ties them together.

    DIR/disk.img    sparse raw image; once complete, an ordinary image for anything
    DIR/map.live    present and dirty bits, mapped shared (see maps.py)
    DIR/map.durable present and dirty bits as of the last commit
    DIR/meta.json   format, size, block size, source, whether complete
    DIR/lock        held while a process uses the store

The crash rule. Data is written before its present bit is set, and the bit is set before the reply:
so the live map never promises more than the page cache holds. A commit makes bits durable only
after the data they speak of: so the durable map never promises more than the disk holds.

`lock` guards the bitmaps, the counts and the set of changed pages. It is never held across I/O.
Commits run one at a time and are shared: a flush that arrives while one runs waits for the next,
however many flushes wait with it.
"""

import errno
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

from relocator.bitmap import Bitmap
from relocator.errors import ConfigError, StoreError
from relocator.geometry import Geometry
from relocator.image import Image
from relocator.maps import PLANES, DurableMap, LiveMap, boot_id

FORMAT = 1
_PRESENT, _DIRTY = range(len(PLANES))


class Store:
    """An open store. Make one with `open_store`."""

    def __init__(self, directory: Path, meta: dict[str, Any], image: Image, lock_fd: int) -> None:
        self.directory = directory
        self.meta = meta
        self.geometry = Geometry(meta["size_bytes"], meta["block_bytes"])
        self.image = image
        self._lock_fd = lock_fd
        total = self.geometry.total_blocks
        self._durable = DurableMap(directory / "map.durable", total)
        self._live = LiveMap(directory / "map.live", total, boot_id())
        self.present: Bitmap = self._live.planes["present"]
        self.dirty: Bitmap = self._live.planes["dirty"]
        self.lock = threading.Lock()
        self._changed: set[int] = set()
        self._recover()
        self.present_blocks = self.present.count()
        self.dirty_blocks = self.dirty.count()
        self._commit_lock = threading.Lock()
        self._commits_asked = 0
        self._commits_done = 0
        self._failure: OSError | None = None

    def _recover(self) -> None:
        """Start from the live map if it is of this boot, else from the durable one."""
        committed = [Bitmap(self.geometry.total_blocks) for _ in PLANES]
        self._durable.load(committed)
        if not self._live.believed:
            for live, durable in zip((self.present, self.dirty), committed, strict=True):
                for first, end in durable.set_runs(0, durable.bits):
                    live.set(first, end)
            self._live.vouch()
        # Whatever the live map has and the durable one hasn't is owed to the next commit.
        for page in range(self._durable.pages_per_plane * len(PLANES)):
            plane, first, end = self._durable.span(page)
            live = (self.present, self.dirty)[plane]
            if live.extract(first, end) != committed[plane].extract(first, end):
                self._changed.add(page)

    @property
    def complete(self) -> bool:
        """Whether every block is present and that is durable."""
        return bool(self.meta["complete"])

    @property
    def owes_commit(self) -> bool:
        """Whether a map has changed since the last commit."""
        return bool(self._changed)

    def mark_present(self, first: int, end: int) -> None:
        """Blocks whose data has been written are valid here. The caller holds `lock`."""
        if added := self.present.set(first, end):
            self.present_blocks += added
            self._changed.update(self._durable.pages(_PRESENT, first, end))

    def mark_dirty(self, first: int, end: int) -> None:
        """Blocks are about to be written by the VM: a superset is safe, so before the data."""
        if first == end or self.dirty.all(first, end):
            return
        with self.lock:
            self.dirty_blocks += self.dirty.set(first, end)
            self._changed.update(self._durable.pages(_DIRTY, first, end))

    def commit(self) -> None:
        """Make every acknowledged write, and the bits that speak of them, durable.

        Raises:
            StoreError: the data or the map could not be made durable, now or at an earlier
                commit; after that no commit succeeds, as the kernel may have dropped the data.
        """
        with self.lock:
            self._commits_asked += 1
            ticket = self._commits_asked
        with self._commit_lock:
            if self._commits_done >= ticket:
                return
            with self.lock:
                covered = self._commits_asked
            self._commit()
            self._commits_done = covered

    def _commit(self) -> None:
        if self._failure is not None:
            raise StoreError(f"an earlier commit failed: {self._failure}", errno.EIO)
        planes = (self.present, self.dirty)
        # 1. Snapshot the bits: what they promise has been written, if not yet to the disk.
        with self.lock:
            pages = sorted(self._changed)
            self._changed.clear()
            snapshot = []
            for page in pages:
                plane, first, end = self._durable.span(page)
                snapshot.append((page, planes[plane].extract(first, end)))
        try:
            # 2. The data.
            self.image.sync()
            # 3. and 4. The map beside the old one, with a checksum; then to the disk.
            if snapshot:
                self._durable.write(snapshot)
        except OSError as error:
            self._failure = error
            raise StoreError(f"commit of {self.directory}: {error}", errno.EIO) from error

    def finish(self) -> None:
        """Record for good that every block is here."""
        self.commit()
        self.meta = {**self.meta, "complete": True}
        _write_meta(self.directory, self.meta)

    def close(self) -> None:
        """Commit and let go of the store."""
        try:
            self.commit()
        finally:
            self._live.close()
            self._durable.close()
            self.image.close()
            os.close(self._lock_fd)


def read_meta(directory: Path) -> dict[str, Any] | None:
    """What the store at `directory` says of itself; None if there is no store.

    Raises:
        ConfigError: there is something, but not a store this version can read.
    """
    try:
        meta = json.loads((directory / "meta.json").read_text())
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise ConfigError(f"store={directory}: is a file; give a directory") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"store={directory}: meta.json can't be read: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise ConfigError(f"store={directory}: format {found}; this version reads format {FORMAT}")
    return meta


def open_store(directory: Path, size_bytes: int, block_bytes: int, source: str) -> Store:
    """Open the store at `directory`, or create it for a disk of the given size.

    Raises:
        ConfigError: it is in use, was made for another disk, or is damaged.
    """
    lock_fd = _take_lock(directory)
    try:
        meta = read_meta(directory)
        fresh = meta is None
        if meta is None:
            meta = {
                "format": FORMAT,
                "size_bytes": size_bytes,
                "block_bytes": block_bytes,
                "source": source,
                "complete": False,
            }
        for key, wanted in (("size_bytes", size_bytes), ("block_bytes", block_bytes)):
            if meta[key] != wanted:
                raise ConfigError(
                    f"store={directory}: holds a copy with {key}={meta[key]}, not {wanted}; "
                    "give the source and block it was made with, or another directory"
                )
        store = Store(directory, meta, _open_disk(directory, size_bytes, fresh), lock_fd)
        if fresh:  # meta.json comes last: where it is, the rest is whole
            _sync_directory(directory)
            _write_meta(directory, meta)
        return store
    except BaseException:
        os.close(lock_fd)
        raise


def _open_disk(directory: Path, size_bytes: int, fresh: bool) -> Image:
    """The store's image; a missing or foreign one is never taken for an empty one."""
    path = directory / "disk.img"
    if fresh and path.exists():
        raise ConfigError(
            f"store={directory}: holds a disk.img but no meta.json, so it is not a store; "
            "remove it or give another directory"
        )
    if fresh:
        for name in ("map.live", "map.durable"):
            (directory / name).unlink(missing_ok=True)
        return Image(path, create_bytes=size_bytes)
    try:
        image = Image(path)
    except OSError as error:
        raise ConfigError(f"store={directory}: disk.img: {error.strerror}") from error
    if image.size_bytes != size_bytes:
        found = image.size_bytes
        image.close()
        raise ConfigError(f"store={directory}: disk.img is {found} bytes long, not {size_bytes}")
    return image


def _take_lock(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"store={directory}: {error.strerror}; give a directory that can be written"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"store={directory}: is in use by another process") from error
    return fd


def _write_meta(directory: Path, meta: dict[str, Any]) -> None:
    """Replace meta.json atomically: write, fsync, rename, fsync the directory."""
    fresh = directory / "meta.json.new"
    with fresh.open("w") as file:
        json.dump(meta, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(directory / "meta.json")
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
