"""A bitmap over any writable buffer: one bit a block, bit 0 of byte 0 first.

The buffer is borrowed, so the same code serves memory and a file mapped into it. Long scans are
left to C (`re` for the next byte of interest, `int` for counting and for short ranges): a map of
1 TiB in 4 KiB blocks is 32 MiB, and no operation here walks it bit by bit.

Reading one value is atomic under the GIL; writing is read-modify-write, so writers hold a lock of
the caller's.
"""

import mmap
import re
from collections.abc import Iterator

_NOT_FULL = re.compile(rb"[^\xff]", re.DOTALL)
_NOT_EMPTY = re.compile(rb"[^\x00]", re.DOTALL)
_CHUNK_BYTES = 1 << 16

#: What a bitmap's bits may live in.
Buffer = bytearray | mmap.mmap


class Bitmap:
    """`bits` bits in `buffer`, starting at its byte `start`."""

    def __init__(self, bits: int, buffer: Buffer | None = None, start: int = 0) -> None:
        self.bits = bits
        self.nbytes = -(-bits // 8)
        self._buffer: Buffer = bytearray(self.nbytes) if buffer is None else buffer
        self._start = start
        if len(self._buffer) < start + self.nbytes:
            raise ValueError(f"buffer of {len(self._buffer)} bytes is too small for {bits} bits")

    def __getitem__(self, index: int) -> bool:
        return bool(self._buffer[self._start + (index >> 3)] >> (index & 7) & 1)

    def _window(self, first: int, end: int) -> tuple[int, int, int]:
        """Bytes that hold the bits `first..end`, as (start, stop), and the mask of those bits."""
        start, stop = self._start + (first >> 3), self._start + ((end + 7) >> 3)
        return start, stop, ((1 << (end - first)) - 1) << (first & 7)

    def _chunks(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """`_window` in pieces small enough to be integers."""
        while first < end:
            piece_end = min(end, (first | (_CHUNK_BYTES * 8 - 1)) + 1)
            yield self._window(first, piece_end)
            first = piece_end

    def all(self, first: int, end: int) -> bool:
        """Whether every bit of `first..end` is set (true for an empty range)."""
        if end - first == 1:
            return bool(self._buffer[self._start + (first >> 3)] >> (first & 7) & 1)
        return self.next_clear(first, end) == end

    def any(self, first: int, end: int) -> bool:
        """Whether some bit of `first..end` is set."""
        return self.next_set(first, end) != end

    def count(self, first: int = 0, end: int | None = None) -> int:
        """How many bits of `first..end` are set."""
        total = 0
        for start, stop, mask in self._chunks(first, self.bits if end is None else end):
            total += (int.from_bytes(self._buffer[start:stop], "little") & mask).bit_count()
        return total

    def set(self, first: int, end: int) -> int:
        """Set `first..end`; return how many of them were clear before."""
        return self._flip(first, end, -1)

    def clear(self, first: int, end: int) -> int:
        """Clear `first..end`; return how many of them were set before."""
        return self._flip(first, end, 0)

    def _flip(self, first: int, end: int, inverted: int) -> int:
        """Change the set bits of `first..end`, or with `inverted` -1 the clear ones; how many."""
        changed = 0
        for start, stop, mask in self._chunks(first, end):
            old = int.from_bytes(self._buffer[start:stop], "little")
            if flipped := mask & (old ^ inverted):
                self._buffer[start:stop] = (old ^ flipped).to_bytes(stop - start, "little")
                changed += flipped.bit_count()
        return changed

    def extract(self, first: int, end: int) -> bytes:
        """The bits `first..end` as bytes, `first` a multiple of 8; unused high bits are zero."""
        start, stop, mask = self._window(first, end)
        return (int.from_bytes(self._buffer[start:stop], "little") & mask).to_bytes(
            stop - start, "little"
        )

    def next_clear(self, first: int, end: int) -> int:
        """The first clear bit of `first..end`, or `end`."""
        return self._next(first, end, _NOT_FULL, 0xFF)

    def next_set(self, first: int, end: int) -> int:
        """The first set bit of `first..end`, or `end`."""
        return self._next(first, end, _NOT_EMPTY, 0)

    def _next(self, first: int, end: int, interesting: re.Pattern[bytes], dull: int) -> int:
        if first >= end:
            return end
        at = self._start + (first >> 3)
        found = (self._buffer[at] ^ dull) >> (first & 7)
        if found:
            return min(end, first + (found & -found).bit_length() - 1)
        match = interesting.search(self._buffer, at + 1, self._start + ((end + 7) >> 3))
        if match is None:
            return end
        at = match.start()
        found = self._buffer[at] ^ dull
        return min(end, (at - self._start) * 8 + (found & -found).bit_length() - 1)

    def clear_runs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """The maximal runs `(first, end)` of clear bits within `first..end`, ascending."""
        while (first := self.next_clear(first, end)) < end:
            run_end = self.next_set(first, end)
            yield first, run_end
            first = run_end

    def set_runs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """The maximal runs `(first, end)` of set bits within `first..end`, ascending."""
        while (first := self.next_set(first, end)) < end:
            run_end = self.next_clear(first, end)
            yield first, run_end
            first = run_end
