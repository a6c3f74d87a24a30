"""The two copies of the maps: a live one for a killed process, a durable one for a power failure.

*Live* is a file mapped shared: what the engine sets is in the page cache at once and survives
kill -9. It carries the kernel's boot id; after a reboot it proves nothing, as its pages may have
reached the disk before the data they speak of, and is thrown away. It has no checksum, so it is
used only where it has to be: not after a process that closed the store, when both say the same.
Nobody syncs it. If the kernel can't write one of its pages back, that counts as clean nevertheless:
once its memory is wanted for something else, the bits that were set in it are gone. So it is asked
for such failures before anything is made durable by those bits, and before they are believed.

*Durable* is rewritten only by a commit, after the data. It is an array of 4 KiB pages, each in two
slots: a page goes to the slot that doesn't hold its newest version, with a sequence number and a
checksum, so a torn write leaves the older version. How many versions there were in all is noted in
meta.json now and then: if fewer are found, a page has lost one that was durable. Every bit speaks
for itself, so pages need not be written as one, and a commit costs what has changed, not what the
disk measures.

Both hold the planes of `PLANES`, one bit a block. Both files have all of their room from the start;
opening reads them piece by piece, only where something was ever written, and keeps no copy.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from relocator.errors import ConfigError, StoreError
from relocator.store.bitmap import Bitmap
from relocator.store.sparse import data_runs
from relocator.store.syscalls import check_writeback

PLANES = ("present", "dirty", "diverged")
PAGE_BYTES = 4096
_MAGIC = b"RELOCMAP"
_VERSION = 1
_LIVE_HEADER = struct.Struct("<8sIIQ36s")  # magic, version, planes, bits, boot id
_SLOT_HEADER = struct.Struct("<IIQ")  # crc32 of the rest, page index, sequence number
PAYLOAD_BYTES = PAGE_BYTES - _SLOT_HEADER.size
PAGE_BITS = PAYLOAD_BYTES * 8
_NEVER_WRITTEN = bytes(PAGE_BYTES)
_PAGES_A_READ = 128


def boot_id() -> str:
    """The kernel's name for this boot: 36 characters."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class LiveMap:
    """The planes in a file mapped shared; `believed` says whether its old content may be used.

    Without a path they are in memory only, and end with the process. Not `wanted`: it is not used.
    """

    believed = False

    def __init__(self, path: Path | None, bits: int, boot: str, *, wanted: bool = True) -> None:
        plane_bytes = -(-bits // 8 // PAGE_BYTES) * PAGE_BYTES + PAGE_BYTES
        size_bytes = PAGE_BYTES + plane_bytes * len(PLANES)
        starts = [PAGE_BYTES + plane_bytes * index for index in range(len(PLANES))]
        self._header = _LIVE_HEADER.pack(_MAGIC, _VERSION, len(PLANES), bits, boot.encode())
        self._path = path
        self._wanted = wanted
        self._fd: int | None = None
        self._memory = _in_memory(size_bytes) if path is None else self._map(path, size_bytes)
        self.planes = {
            name: Bitmap(bits, self._memory, start, empty=True)
            for name, start in zip(PLANES, starts, strict=True)
        }
        if path is not None and self.believed:
            with path.open("rb", buffering=0) as file:
                self._expect_content(file.fileno(), starts)

    def _map(self, path: Path, size_bytes: int) -> mmap.mmap:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            header = os.pread(fd, len(self._header), 0)
            whole = os.fstat(fd).st_size == size_bytes and header == self._header
            self.believed = whole and self._wanted and _was_written(fd)
            if not self.believed:
                os.ftruncate(fd, 0)
            take_room(fd, path, size_bytes)
            memory = mmap.mmap(fd, size_bytes)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        memory.madvise(mmap.MADV_RANDOM)  # a bit that is looked at brings its page, not 32
        return memory

    def _expect_content(self, fd: int, starts: list[int]) -> None:
        """Tell the planes, each with its start in the file, where something was written."""
        for plane, start in zip(self.planes.values(), starts, strict=True):
            for at, end, is_data in data_runs(fd, start, start + plane.nbytes):
                if is_data:
                    plane.expect(at - start, end - start)

    def vouch(self) -> None:
        """Declare the content good from here on: written last, once the planes are filled."""
        self._memory[: len(self._header)] = self._header

    def disown(self) -> None:
        """Declare that the content may promise what the disk has lost: no process believes it."""
        if self._path is not None:
            self._memory[: len(self._header)] = bytes(len(self._header))

    def check(self) -> None:
        """Look whether the kernel could write whatever it has tried to; nothing is written for it.

        Raises:
            OSError: it could not, since this was asked last: bits may be gone, now or later.
        """
        if self._fd is not None:
            check_writeback(self._fd)

    def rest(self) -> None:
        """Let go of the pages that opening has looked at; the file has them."""
        if self._path is not None:
            self._memory.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap; the planes must not be used afterwards."""
        self._memory.close()
        if self._fd is not None:
            os.close(self._fd)


def _was_written(fd: int) -> bool:
    try:
        check_writeback(fd)
    except OSError:
        return False
    return True


def _in_memory(size_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size_bytes)
    except OSError as error:
        raise ConfigError(
            f"block: maps of {size_bytes} bytes: {error.strerror}; give a larger one, or auto"
        ) from error


def take_room(fd: int, path: Path, size_bytes: int) -> None:
    """Allocate all of a map file: a mapped page that can't be allocated later would be a SIGBUS.

    Raises:
        ConfigError: there is no room.
    """
    if size_bytes == 0:
        return
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        raise ConfigError(
            f"store={path.parent}: {error.strerror}; its map {path.name} needs {size_bytes} bytes"
        ) from error


class DurableMap:
    """The planes' committed pages in a file."""

    def __init__(self, path: Path, bits: int) -> None:
        self.pages_per_plane = -(-bits // PAGE_BITS)
        self._bits = bits
        count = self.pages_per_plane * len(PLANES)
        self._sequence = [0] * count
        self._written: list[int] = []
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            take_room(self._fd, path, count * 2 * PAGE_BYTES)
            # What is read ahead would count as written when opening looks for that.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
            # A killed process may have written pages and not synced them: they are found here, so
            # nobody writes them again, and the slots of the versions before are the next to go.
            os.fdatasync(self._fd)
            # What an earlier sync could not write is in the cache, and on no disk.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def versions(self) -> int:
        """How often pages were written, all together."""
        return sum(self._sequence)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def pages(self, plane: int, first: int, end: int) -> range:
        """The pages that hold the bits `first..end` of the plane with index `plane`."""
        base = plane * self.pages_per_plane
        return range(base + first // PAGE_BITS, base + (end - 1) // PAGE_BITS + 1)

    def span(self, page: int) -> tuple[int, int, int]:
        """(plane, first bit, end bit) of a page."""
        plane, index = divmod(page, self.pages_per_plane)
        return plane, index * PAGE_BITS, min((index + 1) * PAGE_BITS, self._bits)

    def committed(self) -> Iterator[tuple[int, bytes]]:
        """Every page that was ever committed, with its bits as of the last commit.

        To be walked to its end before the first `write`: it finds the pages' sequence numbers.

        Raises:
            StoreError: a page was written and neither of its versions is readable.
        """
        for page, slots in self._written_pages():
            newest = _newest(slots, page)
            if newest is None:
                raise StoreError(f"{self._path}: page {page} is damaged in both versions")
            self._sequence[page], payload = newest
            if self._sequence[page]:
                _, first, end = self.span(page)
                yield page, payload[: (end - first + 7) // 8]

    def _written_pages(self) -> Iterator[tuple[int, bytes]]:
        """Every page that was ever written, with both its slots; read in pieces."""
        pair_bytes = 2 * PAGE_BYTES
        size_bytes, done = len(self._sequence) * pair_bytes, 0
        for start, end, is_data in data_runs(self._fd, 0, size_bytes):
            first, stop = max(done, start // pair_bytes), -(-end // pair_bytes)
            for page in range(first, stop if is_data else first, _PAGES_A_READ):
                count = min(_PAGES_A_READ, stop - page)
                data = os.pread(self._fd, count * pair_bytes, page * pair_bytes)
                for index in range(count):
                    yield page + index, data[index * pair_bytes : (index + 1) * pair_bytes]
                done = page + count

    def write(self, pages: Iterable[tuple[int, bytes]]) -> None:
        """Write new versions of `(page, payload)`, each to the slot of its older one.

        Until `sync` has succeeded they don't count: a further write takes the same slots.
        """
        self._written.clear()
        for page, payload in pages:
            sequence = self._sequence[page] + 1
            body = _SLOT_HEADER.pack(0, page, sequence)[4:] + payload.ljust(PAYLOAD_BYTES, b"\0")
            slot = page * 2 + sequence % 2
            os.pwrite(self._fd, zlib.crc32(body).to_bytes(4, "little") + body, slot * PAGE_BYTES)
            self._written.append(page)

    def sync(self) -> None:
        """Make what was written durable."""
        os.fdatasync(self._fd)
        for page in self._written:
            self._sequence[page] += 1
        self._written.clear()


def _newest(slots: bytes, page: int) -> tuple[int, bytes] | None:
    """(sequence, payload) of the newer good version of a page; None if both are damaged."""
    versions = [slots[:PAGE_BYTES], slots[PAGE_BYTES:]]
    versions.sort(key=lambda slot: int(_SLOT_HEADER.unpack_from(slot)[2]), reverse=True)
    return _decode(versions[0], page) or _decode(versions[1], page)


def _decode(slot: bytes, page: int) -> tuple[int, bytes] | None:
    """(sequence, payload) of one slot; sequence 0 if never written; None if damaged."""
    if slot == _NEVER_WRITTEN:
        return 0, b""
    crc, index, sequence = _SLOT_HEADER.unpack_from(slot)
    if index != page or sequence == 0 or zlib.crc32(slot[4:]) != crc:
        return None
    return sequence, slot[_SLOT_HEADER.size :]
