"""QEMU's dirty bitmaps over NBD: what was written, since it was added, at a source not ours.

A server that exports a bitmap answers block status in the context `qemu:dirty-bitmap:NAME` (QEMU's
docs/interop/nbd.rst). A bit, of 64 KiB unless it was made otherwise, is set when a write has
completed. As long as a bitmap is exported QEMU lets nobody clear it, so what is read only grows.

A connection is kept ready between two readings: the last one has a guest's writes wait for it.
"""

import errno
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import nbd

from relocator.errors import UpstreamError
from relocator.source.endpoint import Endpoint
from relocator.source.handles import CONNECT_S, hang_up, open_handle, progress
from relocator.store.bitmap import Bitmap
from relocator.store.geometry import Geometry

_PIECE_BYTES = 1 << 30
_DIRTY = 1  # NBD_STATE_DIRTY


class DirtyBitmap:
    """The bitmap `name` of the disk behind `endpoint`. Any thread may read it."""

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        self.name = name
        self._endpoint = endpoint
        self._context = f"qemu:dirty-bitmap:{name}"
        self._ready: deque[Any] = deque()

    def exists(self) -> bool:
        """Whether the source offers it.

        Raises:
            UpstreamError: it can't be reached.
        """
        handle = open_handle(self._endpoint, self._context)
        try:
            return bool(handle.can_meta_context(self._context))
        finally:
            hang_up(handle)

    def read(self, geometry: Geometry) -> Bitmap | None:
        """The blocks of `geometry` that were written; None if the source has no such bitmap.

        Raises:
            UpstreamError: it can't be reached, failed, or is of another size.
        """
        with suppress(IndexError):
            handle = self._ready.pop()
            with suppress(UpstreamError):  # it may have died since
                return self._read(handle, geometry)
        return self._read(open_handle(self._endpoint, self._context), geometry)

    def _read(self, handle: Any, geometry: Geometry) -> Bitmap | None:
        try:
            if handle.get_size() != geometry.size_bytes:
                size = handle.get_size()
                raise UpstreamError(f"the source has {size} bytes, not {geometry.size_bytes}")
            if not handle.can_meta_context(self._context):
                hang_up(handle)
                return None
            found = _Reading(handle, geometry).finish()
        except nbd.Error as error:
            raise UpstreamError(f"the bitmap can't be read: {error.string}") from error
        self._ready.append(handle)
        return found

    def close(self) -> None:
        """Hang up what is ready: it would keep the source's server from ending."""
        while self._ready:
            with suppress(IndexError):  # a reading has it
                hang_up(self._ready.pop())


class _Reading:
    """All of a bitmap, asked for in pieces that are on their way together."""

    def __init__(self, handle: Any, geometry: Geometry) -> None:
        self._handle = handle
        self._geometry = geometry
        self._found = Bitmap(geometry.total_blocks)
        self._owed = 0
        self._again: list[tuple[int, int]] = []  # what an answer did not reach
        self._error = 0

    def finish(self) -> Bitmap:
        """The blocks that are dirty.

        Raises:
            nbd.Error, UpstreamError: the source failed, or nothing comes any more.
        """
        size = self._geometry.size_bytes
        self._again = [(at, min(at + _PIECE_BYTES, size)) for at in range(0, size, _PIECE_BYTES)]
        heard_s = time.monotonic()
        while self._again or self._owed:
            while self._again:
                self._ask(*self._again.pop())
            if progress(self._handle, 1.0):
                heard_s = time.monotonic()
            if self._error:
                raise UpstreamError(f"the bitmap can't be read: {os.strerror(self._error)}")
            if self._handle.aio_is_dead() or self._handle.aio_is_closed():
                raise UpstreamError("the source ended the connection", errno.ENOTCONN)
            if time.monotonic() - heard_s > CONNECT_S:
                raise UpstreamError(f"no answer within {CONNECT_S:.0f} s", errno.ETIMEDOUT)
        return self._found

    def _ask(self, offset: int, end: int) -> None:
        reached = offset

        def extents(_context: str, at: int, entries: list[int], _error: Any) -> int:
            nonlocal reached
            for length, flags in zip(entries[::2], entries[1::2], strict=True):
                if flags & _DIRTY:
                    self._found.set(*self._geometry.touched(at, min(length, end - at)))
                at += length
            reached = at
            return 0

        def completed(error: Any) -> int:
            self._owed -= 1
            self._error = self._error or error.value
            if offset < reached < end:
                self._again.append((reached, end))
            elif reached == offset:
                self._error = self._error or errno.EPROTO
            return 1

        self._owed += 1
        done: Callable[[Any], int] = completed
        self._handle.aio_block_status(end - offset, offset, extents, completion=done)
