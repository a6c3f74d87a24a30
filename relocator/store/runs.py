"""A bitmap on the wire: its runs as variable-length integers, compressed.

Alternating lengths of clear and set stretches, clear first. A map of a 1 TiB disk in which little
is set takes a few hundred bytes instead of 32 MiB, which matters at the switch. A map so ragged
that its runs would take more than its bits goes as bits: so the size has a bound, `most_bytes`. So
does one with more than some 100,000 runs, which would take a second: the guest waits for this.
"""

import zlib
from collections.abc import Iterable, Sequence

from relocator.errors import UpstreamError
from relocator.store.bitmap import CHUNK_BYTES, Bitmap

MOST_RUN_BYTES = 1 << 18
_MOST_NUMBER_BITS = 63


def pack(bitmap: Bitmap) -> bytes:
    """The bitmap's set runs."""
    return _packed(bitmap.set_runs(0, bitmap.bits), bitmap.bits) or _pack_bits(bitmap)


def pack_runs(found: Sequence[tuple[int, int]], bits: int) -> bytes:
    """The same of runs `(first, end)`, ascending, of a map of `bits` bits."""
    packed = _packed(found, bits)
    if packed is None:
        bitmap = Bitmap(bits)
        for first, end in found:
            bitmap.set(first, end)
        packed = _pack_bits(bitmap)
    return packed


def _packed(found: Iterable[tuple[int, int]], bits: int) -> bytes | None:
    """None if there are so many that bits take less."""
    out = bytearray(b"r")
    limit, at = min(-(-bits // 8), MOST_RUN_BYTES), 0
    for first, end in found:
        _put(out, first - at)
        _put(out, end - first)
        at = end
        if len(out) > limit:
            return None
    return zlib.compress(bytes(out), 1)


def _pack_bits(bitmap: Bitmap) -> bytes:
    packer = zlib.compressobj(1)
    out = bytearray(packer.compress(b"b"))
    for first in range(0, bitmap.bits, CHUNK_BYTES * 8):
        out += packer.compress(bitmap.extract(first, min(first + CHUNK_BYTES * 8, bitmap.bits)))
    return bytes(out + packer.flush())


def most_bytes(bits: int) -> int:
    """The largest size of a packed map of `bits` bits (zlib's own bound on top of the bits)."""
    raw_bytes = -(-bits // 8) + 16
    return raw_bytes + raw_bytes // 1000 + 64


def unpack(packed: bytes, bits: int) -> list[tuple[int, int]]:
    """The set runs `(first, end)`, ascending.

    Raises:
        UpstreamError: the data is damaged or speaks of more than `bits` bits.
    """
    most = max(-(-bits // 8), MOST_RUN_BYTES) + 64
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, most)
    except zlib.error as error:
        raise UpstreamError(f"the source's map can't be unpacked: {error}") from error
    if not unpacker.eof:
        raise UpstreamError(f"the source's map is cut short, or longer than {most} bytes")
    if data[:1] == b"b" and len(data) == 1 + -(-bits // 8):
        return list(Bitmap(bits, bytearray(data), 1).set_runs(0, bits))
    if data[:1] != b"r":
        raise UpstreamError("the source's map is in a form this version doesn't know")
    numbers = _numbers(data[1:])
    if len(numbers) % 2:
        raise UpstreamError("the source's map ends in the middle of a run")
    runs: list[tuple[int, int]] = []
    at = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        runs.append((at + gap, at + gap + length))
        at += gap + length
    if at > bits:
        raise UpstreamError(f"the source's map speaks of {at} blocks, the disk has {bits}")
    return runs


def _put(out: bytearray, number: int) -> None:
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _numbers(data: bytes) -> list[int]:
    numbers: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > _MOST_NUMBER_BITS:
            raise UpstreamError("the source's map has a number larger than any disk")
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    if shift:
        raise UpstreamError("the source's map ends in the middle of a number")
    return numbers
