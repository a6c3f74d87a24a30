"""The two checksums of ext4, for many equally long rows at once.

A table CRC byte by byte would take Python seconds for the bitmaps of 1 TiB. But rows of the same
length (bitmaps, group descriptors) can advance together. Byte k of all their registers is kept as
one *plane*, an integer; a step takes the next byte of every row, and both the exclusive or and the
table look-up (`bytes.translate`) are single C calls over all rows.

Polynomials as in the kernel: CRC-32C (Castagnoli) in lib/crc32c, CRC-16 in lib/crc16.c; ext4 uses
both without a final inversion.
"""

from collections.abc import Sequence


class Crc:
    """A reflected CRC of `width_bytes`, given its bit-reversed polynomial."""

    def __init__(self, polynomial: int, width_bytes: int) -> None:
        self._width_bytes = width_bytes
        self._table = [_entry(value, polynomial) for value in range(256)]
        self._planes = [
            bytes(entry >> 8 * plane & 0xFF for entry in self._table)
            for plane in range(width_bytes)
        ]

    def one(self, data: bytes, seed: int) -> int:
        """The register after `data`, starting from `seed`."""
        table = self._table
        for byte in data:
            seed = table[(seed ^ byte) & 0xFF] ^ (seed >> 8)
        return seed

    def many(self, rows: Sequence[bytes], seed: int) -> list[int]:
        """The register after each of `rows`, all of one length, each starting from `seed`."""
        count = len(rows)
        if count < 8:
            return [self.one(row, seed) for row in rows]
        length = len(rows[0])
        if any(len(row) != length for row in rows):
            raise ValueError("rows must have the same length")
        joined, top = b"".join(rows), self._width_bytes - 1
        planes = [
            int.from_bytes(bytes([seed >> 8 * plane & 0xFF]) * count, "little")
            for plane in range(self._width_bytes)
        ]
        for column in range(length):
            step = int.from_bytes(joined[column::length], "little")
            index = (planes[0] ^ step).to_bytes(count, "little")
            looked_up = [int.from_bytes(index.translate(table), "little") for table in self._planes]
            planes = [looked_up[plane] ^ planes[plane + 1] for plane in range(top)]
            planes.append(looked_up[top])
        columns = [plane.to_bytes(count, "little") for plane in planes]
        return [int.from_bytes(register, "little") for register in zip(*columns, strict=True)]


def _entry(value: int, polynomial: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (polynomial if value & 1 else 0)
    return value


CRC32C = Crc(0x82F63B78, 4)
CRC16 = Crc(0xA001, 2)
