"""The working set: which places of the disk were read of late, the last first.

Heat knows groups; this knows the very blocks. A read is noted as one *place*: its first block of
4 KiB and how many follow, whatever the maps' block is. Noting one is two look-ups in a dict, also
for a read of many blocks. Reads of more than `LONGEST_BLOCKS` are not noted: their round trip is
small beside their transfer, and what follows them is read ahead.

Places are kept in two lists, so that a reader of the whole disk doesn't flush what is used all the
time (2Q: Johnson and Shasha, 1994): those read *again*, and those read *once*. Each holds half of
what may be remembered. The order begins with the former. Within a list the order is exact to
`TURN_S`: reads are gathered, and merged into the lists by the keeper's thread (`turn`), which alone
changes them. A read that is noted while a turn begins may be lost: this is a statistic.

The lists are kept in a file, replaced as a whole and not made durable: what a power failure leaves
of it is believed only if its checksum is right. Lost, it costs nothing but order.
"""

import struct
import zlib
from array import array
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from relocator.errors import UpstreamError

BLOCK_SHIFT = 12
_LENGTH_BITS = 4
LONGEST_BLOCKS = 1 << _LENGTH_BITS
MOST_PLACES = 1 << 20
#: more can't be asked for
LARGEST_PLACES = 1 << 24
#: as many as the switch tells of at once: the answer has to come in one round trip
FIRST_PLACES = 1024
TURN_S = 60.0
_MOST_GATHERED = 1 << 16
_TOGETHER = 64
_MOST_ONCE_TOLD = 1 << 14  # more of them may be a scan's: heat tells the rest
#: what comes from a source, in bytes, packed or not: some places come twice
MOST_PACKED_BYTES = 8 * (2 * LARGEST_PLACES + _MOST_ONCE_TOLD)
_HEADER = struct.Struct("<8sII")  # magic, crc32 of what follows, how many were read again
_CHECKED_FROM = 12
_MAGIC = b"RELOCRD1"

#: unsigned 64-bit integers: first block << 4 | (blocks - 1)
Places: TypeAlias = "array[int]"


class Recent:
    """The places read last, at most `most` (0: none is noted); `now` gives seconds.

    `path` is where they are kept; None: in memory only.
    """

    def __init__(
        self, now: Callable[[], float], most: int = MOST_PLACES, path: Path | None = None
    ) -> None:
        self._now = now
        self._half = most // 2
        self._room = min(most, _MOST_GATHERED)
        self._path = path
        #: first block -> how many follow, with `LONGEST_BLOCKS` added if it was read again. (Places
        #: would make poor keys: a dict tells numbers apart by their low bits.)
        self._gathered: dict[int, int] = {}
        self._again, self._once = _load(path)
        self._next_turn_s = now() + TURN_S

    def note_read(self, offset: int, length: int) -> None:
        """Note a read of `length` bytes at byte `offset`."""
        first = offset >> BLOCK_SHIFT
        more = (offset + length - 1 >> BLOCK_SHIFT) - first
        if more < LONGEST_BLOCKS:
            gathered = self._gathered
            seen = gathered.get(first)
            if seen is None:
                if len(gathered) < self._room:
                    gathered[first] = more
            elif seen < LONGEST_BLOCKS:
                gathered[first] = seen | LONGEST_BLOCKS

    def tick(self) -> None:
        """Let time pass: called once a second, by one thread."""
        if len(self._gathered) < self._room // 2 and self._now() < self._next_turn_s:
            return
        self._next_turn_s = self._now() + TURN_S
        if self._gathered:
            self.turn()

    def turn(self) -> None:
        """Merge what was gathered into the lists, and keep them."""
        gathered, self._gathered = self._gathered, {}
        gathered = gathered.copy()  # a reader may still be adding to it
        blocks = (place >> _LENGTH_BITS for place in chain(self._again, self._once))
        for block in {block for block in blocks if block in gathered}:
            gathered[block] |= LONGEST_BLOCKS
        again, once = (_places(gathered, again=again) for again in (True, False))
        self._again = _merged(again, self._again, gathered, self._half)
        self._once = _merged(once, self._once, gathered, self._half)
        self._save()

    def places(self, most: int | None = None) -> bytes:
        """Packed: the places that should come first, at most `most` of them; a few come twice."""
        gathered = self._gathered.copy()
        found = _places(gathered, again=True)[:most] + self._again[:most]
        if most is None or len(found) < most:  # a guest may wait for this: what is cut isn't made
            found += _places(gathered, again=False) + self._once[:_MOST_ONCE_TOLD]
        return zlib.compress(found[:most].tobytes(), 1)

    def _save(self) -> None:
        if self._path is None:
            return
        count = len(self._again).to_bytes(4, "little")
        body = count + self._again.tobytes() + self._once.tobytes()
        fresh = self._path.with_name(self._path.name + ".new")
        with suppress(OSError):  # no room, say: the store's own commits tell of that
            fresh.write_bytes(_MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)
            fresh.rename(self._path)


def _places(gathered: dict[int, int], *, again: bool) -> Places:
    """What was gathered, the last first: places read again, or read once."""
    return array(
        "Q",
        [
            first << _LENGTH_BITS | more & (LONGEST_BLOCKS - 1)
            for first, more in reversed(gathered.items())
            if (more >= LONGEST_BLOCKS) is again
        ],
    )


def _merged(fresh: Places, older: Places, known: Container[int], most: int) -> Places:
    """`fresh` before the places of `older` whose block is not in `known`, cut at `most`."""
    fresh.extend(place for place in older if place >> _LENGTH_BITS not in known)
    del fresh[most:]
    return fresh


def _load(path: Path | None) -> tuple[Places, Places]:
    """What was kept: places read again, and read once; none if it is damaged."""
    again, once = array("Q"), array("Q")
    with suppress(OSError, ValueError, struct.error):
        content = b"" if path is None else path.read_bytes()
        magic, checksum, count = _HEADER.unpack_from(content)
        if magic == _MAGIC and zlib.crc32(content[_CHECKED_FROM:]) == checksum:
            once.frombytes(content[_HEADER.size :])
            again, once = once[:count], once[count:]
    return again, once


def unpack(packed: bytes) -> Places:
    """Packed places.

    Raises:
        UpstreamError: the data is damaged.
    """
    places, unpacker = array("Q"), zlib.decompressobj()
    try:
        places.frombytes(unpacker.decompress(packed, MOST_PACKED_BYTES))
    except (zlib.error, ValueError) as error:
        raise UpstreamError(f"the source's working set can't be read: {error}") from error
    if not unpacker.eof:
        raise UpstreamError("the source's working set is cut short, or too long")
    return places


def ranges(places: Sequence[int], block_bytes: int, total_blocks: int) -> Iterator[tuple[int, int]]:
    """Ranges of blocks `(first, end)` of `block_bytes` that cover the places, in their order.

    `_TOGETHER` of them at a time are sorted, so that neighbours travel as one.
    """
    for at in range(0, len(places), _TOGETHER):
        first = end = 0
        for place in sorted(places[at : at + _TOGETHER]):
            offset = place >> _LENGTH_BITS << BLOCK_SHIFT
            length = ((place & (LONGEST_BLOCKS - 1)) + 1) << BLOCK_SHIFT
            start, stop = offset // block_bytes, -(-(offset + length) // block_bytes)
            if start > end:
                if first < end:
                    yield first, end
                first = start
            end = max(end, min(stop, total_blocks))
        if first < end:
            yield first, end
