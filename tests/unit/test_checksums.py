"""The checksums of ext4, singly and for many rows at once."""

import random

import pytest

from relocator.filesystem.checksums import CRC16, CRC32C, Crc


def test_known_answers() -> None:
    # the check values of the catalogue of CRCs: CRC-32/ISCSI (inverted at the end), CRC-16/MODBUS
    assert CRC32C.one(b"123456789", 0xFFFFFFFF) ^ 0xFFFFFFFF == 0xE3069283
    assert CRC16.one(b"123456789", 0xFFFF) == 0x4B37


@pytest.mark.parametrize("crc", [CRC16, CRC32C], ids=["crc16", "crc32c"])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 300])
def test_many_rows_at_once_are_the_same_as_each_alone(crc: Crc, count: int) -> None:
    rows = [random.Random(number).randbytes(68) for number in range(count)]
    assert crc.many(rows, 0x1234) == [crc.one(row, 0x1234) for row in rows]


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="same length"):
        CRC32C.many([bytes(4)] * 8 + [bytes(5)], 0)
