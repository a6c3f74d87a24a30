"""What of a site's files survives: all when a process dies, what was synced when power fails.

The store's own code writes real files (small, in memory: /dev/shm). Its calls of fsync and
fdatasync come by here; each says which bytes, or which names of a directory, a power failure
leaves. Before each is a moment at which a crash may be chosen. A process may be killed as well
after each store to a map or an image, which a file mapped shared keeps without any call.
"""

import mmap
import os
import shutil
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greenlet import GreenletExit

from relocator.store.bitmap import Bitmap
from relocator.store.image import Image
from tests.explore.threads import Here, Process

#: not worth keeping: a boot later nothing in it is believed, or it is made anew
_VOLATILE = ("map.live", "lock", "spare")


class Storage:
    """The files beneath `root`, of which `template`, if given, is a copy that is durable."""

    def __init__(self, root: Path, template: "Storage | None" = None) -> None:
        self.root = root
        self._prefix = str(root)
        self._bytes: dict[int, bytes] = {}  # inode -> what was synced
        self._names: dict[str, dict[str, int]] = {}  # directory -> name -> inode
        if template is None:
            root.mkdir(parents=True)
        else:
            shutil.copytree(template.root, root)
            self._believe_all()

    def _believe_all(self) -> None:
        for directory, _, names in os.walk(self._prefix):
            for name in names:
                path = f"{directory}/{name}"
                self._bytes[os.stat(path).st_ino] = _content(path)  # noqa: PTH116
            self._names[directory] = _names(directory)

    def add(self, name: str, content: bytes) -> Path:
        """A file that is durable from the start."""
        path = self.root / name
        path.write_bytes(content)
        self._believe_all()
        return path

    def synced(self, fd: int) -> bool:
        """A file or a directory was synced; whether it is one of this site's."""
        found = os.fstat(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        if not path.startswith(self._prefix):
            return False
        if stat.S_ISDIR(found.st_mode):
            self._names[path] = _names(path)
        else:
            self._bytes[found.st_ino] = _content(path)
        return True

    def durable(self) -> dict[str, bytes]:
        """Path -> bytes of what a power failure leaves."""
        return {
            f"{directory}/{name}": self._bytes.get(number, b"")
            for directory, names in self._names.items()
            for name, number in names.items()
            if name not in _VOLATILE
        }

    def fail_power(self) -> None:
        """Leave what is durable, and nothing else."""
        left, directories = self.durable(), list(self._names)
        shutil.rmtree(self.root)
        self._bytes.clear()
        self._names.clear()
        for directory in (self._prefix, *directories):
            Path(directory).mkdir(parents=True, exist_ok=True)
        for path, content in left.items():
            Path(path).write_bytes(content)
        self._believe_all()


def _content(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def written_as(image: Image) -> int:
    """In the place of when an image was written last, which is another time in each run.

    What it holds tells as well whether something has written it.
    """
    whole = bytearray(image.size_bytes)
    image.read_into(whole, 0)
    return 1 + zlib.crc32(whole)


def _names(directory: str) -> dict[str, int]:
    with os.scandir(directory) as found:
        return {one.name: one.inode() for one in found if one.is_file()}


class Moments:
    """Sees what a run makes durable: `on_sync` is called before it is done, `on_store` after.

    `stores` know what was synced.
    """

    def __init__(self) -> None:
        self.stores: list[Storage] = []
        self.on_sync: Callable[[], None] = lambda: None
        self.on_store: Callable[[], None] = lambda: None

    def sync(self, fd: int) -> None:
        self.on_sync()
        any(store.synced(fd) for store in self.stores)


def storing(store: Callable[..., Any]) -> Callable[..., Any]:
    """A method that stores to a map or an image; it does no more once its process is dead.

    Else what unwinds a killed thread would still store: `finally`, which no killed process does.
    """

    def stored(self: Any, *arguments: Any, **options: Any) -> Any:
        kept = not isinstance(self, Bitmap) or isinstance(self._buffer, mmap.mmap)
        task = Here.kernel.current
        if kept and task is not None and not task.process.alive:
            raise GreenletExit
        done = store(self, *arguments, **options)
        if kept and task is not None:
            Files.moments.on_store()
        return done

    return stored


class Files:
    """The module `os` as the store's modules see it. What a process has opened ends with it."""

    moments: Moments
    opened: dict[int, Process]  # file descriptor -> whose it is

    @classmethod
    def close_all_of(cls, process: Process) -> None:
        """The process has died, perhaps while it opened them."""
        for fd in [fd for fd, whose in cls.opened.items() if whose is process]:
            del cls.opened[fd]
            os.close(fd)

    def open(self, *arguments: Any, **options: Any) -> int:
        fd = os.open(*arguments, **options)
        if Here.kernel.current is not None:
            self.opened[fd] = Here.kernel.current.process
        return fd

    def close(self, fd: int) -> None:
        self.opened.pop(fd, None)
        os.close(fd)

    def fsync(self, fd: int) -> None:
        self.moments.sync(fd)

    fdatasync = fsync

    def urandom(self, count: int) -> bytes:
        return Here.kernel.unique().to_bytes(count, "big")

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)
