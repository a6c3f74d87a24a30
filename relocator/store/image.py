"""A raw image: a file or a block device that holds the disk's bytes at their own offsets.

Nothing here knows of blocks or of what is present. Zeroing goes to `fallocate`, which keeps a
sparse image sparse and needs no I/O; where the file system can't, zeros are written. A device does
it for whole sectors only, and past the page cache, which a write to another part of the page may
fill meanwhile: so it is asked for whole pages, and zeros are written to what sticks out. All calls
release the GIL and are safe from several threads at once.
"""

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from relocator.errors import StoreError
from relocator.store import locks
from relocator.store.maps import boot_id
from relocator.store.sparse import data_runs
from relocator.store.syscalls import fallocate

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
_BLKSSZGET = 0x1268  # linux/fs.h: a device's sector, in bytes
_ZEROS = bytes(1 << 20)


def _unit_bytes(fd: int) -> int:
    """What `fallocate` takes in whole only: a byte of a file; of a device a page, or a sector."""
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return 1
    (sector_bytes,) = struct.unpack("=i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    return max(mmap.PAGESIZE, int(sector_bytes))


class Image:
    """The image at `path`, `size_bytes` long; created sparse if `create_bytes` is given.

    Raises BlockingIOError if another process has locked it; of a device, perhaps after 3 s.
    """

    def __init__(self, path: Path, *, create_bytes: int | None = None) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create_bytes is not None else 0)
        self._fd = os.open(path, flags, 0o600)
        if create_bytes is not None and os.fstat(self._fd).st_size < create_bytes:
            os.ftruncate(self._fd, create_bytes)
        try:
            locks.take(self._fd)
        except OSError:
            os.close(self._fd)
            raise
        self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        self._unit_bytes = _unit_bytes(self._fd)

    def fileno(self) -> int:
        """The file descriptor that holds the image's locks."""
        return self._fd

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the disk that have their place already; all of them on a device."""
        found = os.fstat(self._fd)
        return found.st_blocks * 512 if stat.S_ISREG(found.st_mode) else self.size_bytes

    @property
    def modified_ns(self) -> int | None:
        """When it was written last, as its file system says; None of a device, which doesn't."""
        found = os.fstat(self._fd)
        return found.st_mtime_ns if stat.S_ISREG(found.st_mode) else None

    @property
    def free_bytes(self) -> int | None:
        """Room on the file system that the image is on; None on a device."""
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            return None
        room = os.fstatvfs(self._fd)
        return room.f_bavail * room.f_frsize

    @property
    def file_system(self) -> str | None:
        """A name of that file system, which no other host's has; None on a device."""
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            return None
        return f"{boot_id()}/{os.major(found.st_dev)}:{os.minor(found.st_dev)}"

    def reserve(self) -> None:
        """Allocate what has no place yet, so that nothing else can take it; contents are kept.

        Raises:
            StoreError: there is no room, or the file system can't.
        """
        if self.free_bytes is None or self.size_bytes == 0:
            return
        try:
            done = fallocate(self._fd, 0, 0, self.size_bytes)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}", error.errno or errno.EIO) from error
        if not done:
            raise StoreError(f"{self.path}: its file system can't reserve room")

    def close(self) -> None:
        """Close the file; the image must not be used afterwards."""
        os.close(self._fd)

    def read_into(self, buffer: memoryview | bytearray, offset: int) -> None:
        """Fill `buffer` with the bytes at `offset`.

        Raises:
            OSError: EIO if the image ends early, else the file system's error.
        """
        done, length = os.preadv(self._fd, (buffer,), offset), len(buffer)
        while done < length:
            more = os.preadv(self._fd, [memoryview(buffer)[done:]], offset + done)
            if more == 0:
                raise OSError(errno.EIO, f"{self.path} ends before byte {offset + length}")
            done += more

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        done = os.pwrite(self._fd, data, offset)
        while done < len(data):
            done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)

    def zero(self, offset: int, length: int, *, punch: bool) -> bool:
        """Make `length` bytes at `offset` read as zero; `punch` also gives their space back.

        Returns whether `fallocate` did it: else they were all written.
        """
        end, unit = offset + length, self._unit_bytes
        first, last = -(-offset // unit) * unit, end // unit * unit
        mode = _PUNCH_HOLE if punch else _ZERO_RANGE
        if first < last and fallocate(self._fd, mode | _KEEP_SIZE, first, last - first):
            self._write_zeros(offset, first)
            self._write_zeros(last, end)
            return True
        self._write_zeros(offset, end)
        return False

    def _write_zeros(self, offset: int, end: int) -> None:
        while offset < end:
            self.write(memoryview(_ZEROS)[: end - offset], offset)
            offset += min(len(_ZEROS), end - offset)

    def sync(self) -> None:
        """Make all that was written durable."""
        os.fdatasync(self._fd)

    def sync_times(self) -> None:
        """The same, and when it was written last: that nobody needs to find the data by.

        So `fdatasync` leaves it out; `fsync` doesn't, nor where it is kept in memory else: see
        `lazytime` in mount(8).
        """
        os.fsync(self._fd)

    def forget(self) -> None:
        """Let what is read from now on be what the disk has, where that is all written."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def data_runs(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Cover `offset..end` with `(start, end, is_data)`, ascending; a hole reads as zero."""
        return data_runs(self._fd, offset, end)
