"""Sectors that tell who wrote them: each carries the number of the write that made it."""

import struct
from pathlib import Path

SECTOR_BYTES = 512
STAMP = struct.Struct("<8sQQ8x")  # who made it, number, sector: 16 of them fill a sector
WRITTEN, SOURCE, OUTDATED = b"written!", b"source!!", b"outdated"
REPEATS = SECTOR_BYTES // STAMP.size
ZEROS = bytes(SECTOR_BYTES)


def stamp(who: bytes, number: int, sector: int) -> bytes:
    """A sector's 512 bytes."""
    return STAMP.pack(who, number, sector) * REPEATS


def written(number: int, first: int, count: int) -> bytes:
    """The data of write `number` for the sectors `first..first+count`."""
    return b"".join(stamp(WRITTEN, number, sector) for sector in range(first, first + count))


def source_sector(sector: int) -> bytes:
    """What the source has there: every sixth stretch of 64 KiB is a hole."""
    return ZEROS if sector // 128 % 6 == 5 else stamp(SOURCE, 0, sector)


def make_source(path: Path, sectors: int) -> None:
    """The source's image, sparse."""
    with path.open("wb") as disk:
        disk.truncate(sectors * SECTOR_BYTES)
        for sector in range(sectors):
            if (data := source_sector(sector)) != ZEROS:
                disk.seek(sector * SECTOR_BYTES)
                disk.write(data)


def make_seed(path: Path, sectors: int) -> None:
    """An image as the source's, but in every other MiB a third of the blocks is outdated."""
    make_source(path, sectors)
    with path.open("r+b") as disk:
        for sector in range(sectors):
            if sector // 2048 % 2 == 0 and sector // 8 % 3 == 0:
                disk.seek(sector * SECTOR_BYTES)
                disk.write(stamp(OUTDATED, 0, sector))
