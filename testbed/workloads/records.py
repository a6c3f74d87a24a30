"""Records that check themselves: 4 KiB with a sequence number, a place and a checksum.

The ledger writes them, here and inside a real guest, whose small Python has little more than
`struct` and `zlib`: nothing else is imported.
"""

import struct
import zlib

RECORD_BYTES = 4096
HEAD = struct.Struct("<8sQQI")
MAGIC = b"ledger 1"


def record(sequence: int, slot: int) -> bytes:
    """A record; the checksum covers all of it, itself taken as zero."""
    body = struct.pack("<QQ", sequence, slot) * ((RECORD_BYTES - HEAD.size) // 16 + 1)
    text = HEAD.pack(MAGIC, sequence, slot, 0) + body
    text = text[:RECORD_BYTES]
    head = HEAD.pack(MAGIC, sequence, slot, zlib.crc32(text))
    return head + text[HEAD.size :]


def sequence_of(found: bytes, slot: int) -> int | None:
    """The sequence number of the record that `found` is, if it is a whole one of this slot."""
    magic, sequence, held_slot, _ = HEAD.unpack(found[: HEAD.size])
    if magic != MAGIC or held_slot != slot or found != record(sequence, slot):
        return None
    return int(sequence)
