"""A bitmap over any writable buffer: one bit a block, bit 0 of byte 0 first.

The buffer is borrowed, so the same code serves memory and a file mapped into it. Long scans are
left to C (comparison of whole pieces, `re` within one, `int` for counting and for short ranges): a
map of 1 TiB in 4 KiB blocks is 32 MiB, and no operation here walks it bit by bit.

A byte for each chunk says whether a bit of it may ever have been set. Who looks for set bits passes
over the other chunks, so a map in which little is set costs little, and what was never set is never
read: of a map in a file, only pages that were written take memory.

Reading one value is atomic under the GIL; writing is read-modify-write, so writers hold a lock of
the caller's.
"""

import mmap
import re
from collections.abc import Iterator

_NOT_FULL = re.compile(rb"[^\xff]", re.DOTALL)
_NOT_EMPTY = re.compile(rb"[^\x00]", re.DOTALL)
CHUNK_BYTES = 1 << 12  # a page of a mapped file
_CHUNK_SHIFT = CHUNK_BYTES.bit_length() - 1
_DULL_PIECES = {
    dull: [bytes([dull]) * length for length in (CHUNK_BYTES, CHUNK_BYTES >> 4)]
    for dull in (0x00, 0xFF)
}

#: What a bitmap's bits may live in.
Buffer = bytearray | mmap.mmap


class Bitmap:
    """`bits` bits in `buffer`, starting at its byte `start`.

    `empty`: the buffer holds zeros; but for what `expect` is told of.
    """

    def __init__(
        self, bits: int, buffer: Buffer | None = None, start: int = 0, *, empty: bool = False
    ) -> None:
        self.bits = bits
        self.nbytes = -(-bits // 8)
        self._buffer: Buffer = bytearray(self.nbytes) if buffer is None else buffer
        self._start = start
        if len(self._buffer) < start + self.nbytes:
            raise ValueError(f"buffer of {len(self._buffer)} bytes is too small for {bits} bits")
        known_empty = empty or buffer is None
        self._used = bytearray((b"\0" if known_empty else b"\1") * -(-self.nbytes // CHUNK_BYTES))

    def expect(self, first_byte: int, end_byte: int) -> None:
        """Bits may be set in the bytes `first_byte..end_byte` of the map."""
        if first_byte < end_byte:
            first, end = first_byte >> _CHUNK_SHIFT, ((end_byte - 1) >> _CHUNK_SHIFT) + 1
            self._used[first:end] = b"\1" * (end - first)

    def __getitem__(self, index: int) -> bool:
        return bool(self._buffer[self._start + (index >> 3)] >> (index & 7) & 1)

    def _window(self, first: int, end: int) -> tuple[int, int, int]:
        """Bytes that hold the bits `first..end`, as (start, stop), and the mask of those bits."""
        start, stop = self._start + (first >> 3), self._start + ((end + 7) >> 3)
        return start, stop, ((1 << (end - first)) - 1) << (first & 7)

    def _chunks(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """`_window` in pieces small enough to be integers, without those where no bit is set."""
        while first < end:
            piece_end = min(end, (first | (CHUNK_BYTES * 8 - 1)) + 1)
            if self._used[first >> (_CHUNK_SHIFT + 3)]:
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
        last = self.bits if end is None else end
        for start, stop, mask in self._chunks(first, last):
            total += (int.from_bytes(self._buffer[start:stop], "little") & mask).bit_count()
        return total

    def set(self, first: int, end: int) -> int:
        """Set `first..end`; return how many of them were clear before."""
        if end - first == 1:  # what a small write does several times
            at, bit = self._start + (first >> 3), 1 << (first & 7)
            self._used[first >> (_CHUNK_SHIFT + 3)] = 1
            old = self._buffer[at]
            self._buffer[at] = old | bit
            return not old & bit
        self.expect(first >> 3, (end + 7) >> 3)
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
        at, stop = first >> 3, (end + 7) >> 3
        if 1 not in self._used[at >> _CHUNK_SHIFT : (stop >> _CHUNK_SHIFT) + 1]:
            return bytes(stop - at)
        found = bytearray(self._buffer[self._start + at : self._start + stop])
        if end & 7:
            found[-1] &= (1 << (end & 7)) - 1
        return bytes(found)

    def insert(self, first: int, content: bytes) -> None:
        """Put what `extract` gave back at the bit `first`, a multiple of 8."""
        at = first >> 3
        self.expect(at, at + len(content))
        self._buffer[self._start + at : self._start + at + len(content)] = content

    def next_clear(self, first: int, end: int) -> int:
        """The first clear bit of `first..end`, or `end`."""
        return self._next(first, end, _NOT_FULL, 0xFF)

    def next_set(self, first: int, end: int) -> int:
        """The first set bit of `first..end`, or `end`."""
        while first < end:
            chunk = first >> (_CHUNK_SHIFT + 3)
            if not self._used[chunk]:
                chunk = self._used.find(1, chunk)
                if chunk < 0:
                    return end
                first = chunk << (_CHUNK_SHIFT + 3)
                continue
            stop = min(end, (chunk + 1) << (_CHUNK_SHIFT + 3))
            first = self._next(first, stop, _NOT_EMPTY, 0)
            if first < stop:
                return first
        return end

    def _next(self, first: int, end: int, interesting: re.Pattern[bytes], dull: int) -> int:
        if first >= end:
            return end
        at = self._start + (first >> 3)
        found = (self._buffer[at] ^ dull) >> (first & 7)
        if found:
            return min(end, first + (found & -found).bit_length() - 1)
        at = self._search(at + 1, self._start + ((end + 7) >> 3), interesting, dull)
        if at < 0:
            return end
        found = self._buffer[at] ^ dull
        return min(end, (at - self._start) * 8 + (found & -found).bit_length() - 1)

    def _search(self, at: int, stop: int, interesting: re.Pattern[bytes], dull: int) -> int:
        """Where in the buffer's `at..stop` the first byte is that isn't `dull`; -1 if none is."""
        for piece in _DULL_PIECES[dull]:
            length = len(piece)
            while stop - at > length and self._buffer[at : at + length] == piece:
                at += length
        match = interesting.search(self._buffer, at, stop)  # in this piece, or in what is left
        return -1 if match is None else match.start()

    def clear_runs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """The maximal runs `(first, end)` of clear bits within `first..end`, ascending."""
        if end - first == 1:
            if not self[first]:
                yield first, end
            return
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
