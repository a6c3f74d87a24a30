"""A disk as a bytearray, and random requests that go to it and to a real one alike."""

import random
from typing import Any

import nbd

BLOCK_BYTES = 4096


def source_bytes(size_bytes: int, seed: int = 1) -> bytearray:
    """Random data with some all-zero stretches, so that holes and zero data both occur."""
    data = bytearray(random.Random(seed).randbytes(size_bytes))
    for start in range(0, size_bytes, 1 << 20):
        data[start + (512 << 10) : start + (700 << 10)] = bytes(
            max(0, min(start + (700 << 10), size_bytes) - start - (512 << 10))
        )
    return data


class Actor:
    """Sends random requests to the bytes `start..end` of a disk and keeps the model in step."""

    def __init__(
        self,
        handle: Any,
        model: bytearray,
        start: int,
        end: int,
        seed: int,
        *,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._handle = handle
        self._model = model
        self._start, self._end = start, end
        self._block_bytes = block_bytes
        self._random = random.Random(seed)

    def step(self) -> None:
        """One request; a read is compared byte by byte."""
        choose = self._random
        length = choose.choice((1, 511, 512, 4096, 4097, 20000, 70000, choose.randrange(1, 9000)))
        length = min(length, self._end - self._start)
        offset = choose.randrange(self._start, self._end - length + 1)
        if choose.random() < 0.4:
            offset = max(self._start, offset // BLOCK_BYTES * BLOCK_BYTES)
            length = min(length, self._end - offset)
        flags = nbd.CMD_FLAG_FUA if choose.random() < 0.05 else 0
        kind = choose.choices(("read", "write", "zero", "trim", "flush"), (45, 35, 8, 8, 4))[0]
        getattr(self, f"_{kind}")(offset, length, flags)

    def check_all(self) -> None:
        """Read the whole range and compare."""
        for offset in range(self._start, self._end, 1 << 20):
            self._read(offset, min(1 << 20, self._end - offset), 0)

    def _read(self, offset: int, length: int, _flags: int) -> None:
        got = self._handle.pread(length, offset)
        wanted = self._model[offset : offset + length]
        if got != wanted:
            at = next(i for i in range(length) if got[i] != wanted[i])
            raise AssertionError(
                f"read of {length} at {offset}: differs from byte {offset + at} "
                f"(block {(offset + at) // BLOCK_BYTES})"
            )

    def _write(self, offset: int, length: int, flags: int) -> None:
        data = self._random.randbytes(length)
        self._handle.pwrite(data, offset, flags)
        self._model[offset : offset + length] = data

    def _zero(self, offset: int, length: int, flags: int) -> None:
        if self._random.random() < 0.5:
            flags |= nbd.CMD_FLAG_NO_HOLE
        self._handle.zero(length, offset, flags)
        self._model[offset : offset + length] = bytes(length)

    def _trim(self, offset: int, length: int, flags: int) -> None:
        """Whole blocks read as zero afterwards; blocks covered in part keep their data."""
        self._handle.trim(length, offset, flags)
        first = -(-offset // self._block_bytes) * self._block_bytes
        at_end = offset + length == len(self._model)
        last = (
            offset + length
            if at_end
            else (offset + length) // self._block_bytes * self._block_bytes
        )
        if first < last:
            self._model[first:last] = bytes(last - first)

    def _flush(self, _offset: int, _length: int, _flags: int) -> None:
        self._handle.flush()
