"""What a guest's request does to the disk.

Two disks with one interface: a `TargetDisk`, all of which is here, and a `ProxyDisk`, which may
still be partly at its source. A proxy reads what is present from the store and hydrates the rest;
it writes locally whatever the state, and the source is never written. Blocks covered in part by a
write are hydrated first. Zero and trim make blocks present too, or old data would come back.

Trim is advice, so it is rounded inwards to whole blocks: a block trimmed in part keeps its data and
costs no round trip. A block trimmed wholly reads as zero from then on.

Once all is present, the maps are no longer consulted for reads (`ProxyDisk.all_here`).
"""

import errno
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from relocator.errors import NotKeptError, StoreError
from relocator.hydration import Hydration
from relocator.image import Image
from relocator.latency import Histogram
from relocator.store import Store
from relocator.upstream import Upstream

#: (offset, length, whether it holds data), ascending
Run = tuple[int, int, bool]
_MOST_RUNS = 4096
_ZERO_STEP_BYTES = 1 << 30


def clipped(offset: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    """`offset..end` in pieces of at most `step` bytes that end at its multiples."""
    while offset < end:
        stop = min(end, (offset // step + 1) * step)
        yield offset, stop
        offset = stop


class TargetDisk:
    """A disk whose image is all here."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.size_bytes = image.size_bytes
        self.requests = {name: Histogram() for name in ("read_present", "write")}

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes at `offset`."""
        start = time.perf_counter_ns()
        self._image.read_into(buffer, offset)
        self.requests["read_present"].add(time.perf_counter_ns() - start)

    def write(self, data: memoryview, offset: int, *, fua: bool) -> None:
        """Write `data` at `offset`; with `fua`, durably."""
        start = time.perf_counter_ns()
        self._image.write(data, offset)
        if fua:
            self.flush()
        self.requests["write"].add(time.perf_counter_ns() - start)

    def zero(self, offset: int, length: int, *, punch: bool, fua: bool) -> None:
        """Make `length` bytes read as zero; `punch` gives their space back."""
        self._image.zero(offset, length, punch=punch)
        if fua:
            self.flush()

    def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Give the space of `length` bytes back; they read as zero."""
        self.zero(offset, length, punch=True, fua=fua)

    def flush(self) -> None:
        """Make every acknowledged write durable."""
        self._image.sync()

    def runs(self, offset: int, length: int) -> list[Run]:
        """What holds data and what is a hole, from `offset` on; may stop before the end."""
        found = self._image.data_runs(offset, offset + length)
        return [(start, end - start, data) for start, end, data in islice(found, _MOST_RUNS)]

    def status(self) -> dict[str, Any]:
        """The disk's part of the status object."""
        return {
            "size_bytes": self.size_bytes,
            "requests": {name: histogram.as_dict() for name, histogram in self.requests.items()},
        }


class ProxyDisk:
    """A disk that may still be partly at its source."""

    def __init__(
        self, store: Store, upstream: Upstream | None, hydration: Hydration | None
    ) -> None:
        self._store = store
        self._geometry = store.geometry
        self._image = store.image
        self._upstream = upstream
        self._hydration = hydration
        self.all_here = hydration is None
        self.size_bytes = store.geometry.size_bytes
        self.requests = {name: Histogram() for name in ("read_present", "read_absent", "write")}

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes at `offset`, fetching what is absent."""
        start = time.perf_counter_ns()
        first, end = self._geometry.touched(offset, len(buffer))
        if self.all_here or self._store.present.all(first, end):
            self._image.read_into(buffer, offset)
            self.requests["read_present"].add(time.perf_counter_ns() - start)
            return
        try:
            self._hydrate(first, end)
        except NotKeptError:
            self._read_through(buffer, offset)
        else:
            self._image.read_into(buffer, offset)
        self.requests["read_absent"].add(time.perf_counter_ns() - start)

    def write(self, data: memoryview, offset: int, *, fua: bool) -> None:
        """Write `data` at `offset`; with `fua`, durably."""
        start = time.perf_counter_ns()
        self._modify(offset, len(data), lambda: self._image.write(data, offset))
        if fua:
            self.flush()
        self.requests["write"].add(time.perf_counter_ns() - start)

    def zero(self, offset: int, length: int, *, punch: bool, fua: bool) -> None:
        """Make `length` bytes read as zero; `punch` gives their space back."""
        for start, stop in clipped(offset, offset + length, _ZERO_STEP_BYTES):
            self._zero_piece(start, stop - start, punch)
        if fua:
            self.flush()

    def _zero_piece(self, offset: int, length: int, punch: bool) -> None:
        self._modify(offset, length, lambda: self._image.zero(offset, length, punch=punch))

    def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Give the space of the whole blocks in the range back; they read as zero."""
        _, first, end = self._geometry.split(offset, length)
        extent = self._geometry.extent(first, end)
        if first < end:
            self.zero(extent.offset, extent.length, punch=True, fua=False)
        if fua:
            self.flush()

    def flush(self) -> None:
        """Make every acknowledged write durable."""
        self._store.commit()

    def runs(self, offset: int, length: int) -> list[Run]:
        """What holds data and what is a hole, from `offset` on; absent blocks count as data."""
        found: list[Run] = []
        block = self._geometry.block_bytes
        end = offset + length
        while offset < end and len(found) < _MOST_RUNS:
            first, last = self._geometry.touched(offset, end - offset)
            stop = min(end, self._store.present.next_set(first, last) * block)
            if stop > offset:
                found.append((offset, stop - offset, True))
                offset = stop
                continue
            stop = min(end, self._store.present.next_clear(first, last) * block)
            for start, run_end, data in self._image.data_runs(offset, stop):
                found.append((start, run_end - start, data))
            offset = stop
        return found

    def status(self) -> dict[str, Any]:
        """The disk's part of the status object."""
        return {
            "size_bytes": self.size_bytes,
            "requests": {name: histogram.as_dict() for name, histogram in self.requests.items()},
        }

    def _hydrate(self, first: int, end: int) -> None:
        if self._hydration is None:
            raise StoreError("a complete disk has an absent block: its maps are damaged")
        self._hydration.hydrate(first, end)

    def _modify(self, offset: int, length: int, apply: Callable[[], None]) -> None:
        """Let `apply` change the bytes `offset..offset+length`, by the rules of the maps.

        Raises:
            StoreError: the store refused; nothing was marked present.
        """
        edges, first, end = self._geometry.split(offset, length)
        touched = self._geometry.touched(offset, length)
        try:
            if self.all_here or self._store.present.all(*touched):
                self._store.mark_dirty(*touched)
                apply()
                return
            for edge in edges:
                self._hydrate(edge, edge + 1)
            if self._hydration is None:
                raise StoreError("a complete disk has an absent block: its maps are damaged")
            with self._hydration.writing(first, end):
                self._store.mark_dirty(*touched)
                apply()
        except OSError as error:
            raise StoreError(
                f"write of {length} bytes at {offset}: {error}", error.errno or errno.EIO
            ) from error

    def _read_through(self, buffer: memoryview, offset: int) -> None:
        """The store is full: present blocks from it, the others from the source, not kept."""
        if self._upstream is None:
            raise StoreError("a complete disk has an absent block: its maps are damaged")
        block = self._geometry.block_bytes
        for start, stop in clipped(offset, offset + len(buffer), block):
            piece = buffer[start - offset : stop - offset]
            if self._store.present[start // block]:
                self._image.read_into(piece, start)
            else:
                self._upstream.read_into(piece, start)
