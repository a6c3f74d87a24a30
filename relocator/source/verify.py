"""Proof of a copy: digests of blocks, made at both sites, compared here; no data moves again.

The source offers an export `digest`: for each 4 KiB of the disk the 16 bytes of its BLAKE2b digest.
Every block is one of

    verified    fetched and never written here: it must be what the source has
    skipped     the same, but one site has zeros in it because it was free (see store/skipped.py),
                and the other has not: nothing is known of it, nor need be
    unverified  written here: newer than the source's on purpose
    absent      not here: only the source has it
"""

import hashlib
import re
from array import array
from bisect import bisect_right
from functools import cache
from typing import Any

from relocator.errors import StateError, UpstreamError
from relocator.source.answer import Runs
from relocator.source.handles import exports_at
from relocator.source.remote import Source
from relocator.store import runs, skipped
from relocator.store.geometry import Geometry
from relocator.store.image import Image
from relocator.store.store import Store

UNIT_BYTES = 4096
DIGEST_BYTES = 16
_STEP_UNITS = 1 << 10
_EXPORT = "digest"
#: which of libnbd's functions has failed, in front of its errors
_CALL = re.compile(r"\bnbd_\w+: ")


def digests(image: Image, first: int, count: int, size_bytes: int) -> bytes:
    """The digests of the units `first..first+count` of an image, one after the other."""
    offset = first * UNIT_BYTES
    data = bytearray(max(0, min(count * UNIT_BYTES, size_bytes - offset)))
    if data:
        image.read_into(data, offset)
    view = memoryview(data)
    return b"".join(
        hashlib.blake2b(view[at : at + UNIT_BYTES], digest_size=DIGEST_BYTES).digest()
        for at in range(0, len(data), UNIT_BYTES)
    )


class DigestExport:
    """The export `digest`: computed as it is read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._units = -(-store.geometry.size_bytes // UNIT_BYTES)
        self.size_bytes = self._units * DIGEST_BYTES

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the digests from byte `offset` on."""
        image, size_bytes = self._store.image, self._store.geometry.size_bytes
        first, end = offset // DIGEST_BYTES, -(-(offset + len(buffer)) // DIGEST_BYTES)
        for unit in range(first, end, _STEP_UNITS):
            made = digests(image, unit, min(_STEP_UNITS, end - unit), size_bytes)
            at = unit * DIGEST_BYTES - offset  # in the buffer; before it, if within a digest
            piece = buffer[max(0, at) : at + len(made)]
            piece[:] = made[max(0, -at) :][: len(piece)]

    def runs(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """All of it is data."""
        return [(offset, length, True)]


def compare(store: Store, source: Source) -> dict[str, Any]:
    """Compare with the source; returns how many blocks are of which kind.

    Raises:
        StateError: a block differs, the first is named; or none could be compared.
        UpstreamError: the source can't be read.
    """
    try:
        return _Comparison(store, source).run()
    except UpstreamError as error:
        server = source.endpoint.with_export(_EXPORT).server
        why = _CALL.sub("", str(error).removeprefix(f"{server}: "))
        raise UpstreamError(
            f"nothing is proven: the source {source.endpoint.uri} can't be read ({why}). Its "
            "server must run, and be reached from here, until `verify` has ended: start it, and "
            "verify again. The copy is as it was",
            error.errno,
        ) from error


class _Free:
    """The units in which a site has zeros because it skipped blocks that were free."""

    def __init__(self, found: Runs, geometry: Geometry) -> None:
        units = Geometry(geometry.size_bytes, UNIT_BYTES)
        spans = [units.touched(*geometry.extent(first, end)) for first, end in found]
        self._firsts = array("Q", (first for first, _ in spans))
        self._ends = array("Q", (end for _, end in spans))
        self._in_part = geometry.block_bytes < UNIT_BYTES

    def explains(self, unit: int, digest: bytes, zeros: bytes) -> bool:
        """Whether the site may differ in a unit whose digest there is `digest`."""
        at = bisect_right(self._firsts, unit) - 1
        named = at >= 0 and unit < self._ends[at]
        return named and (self._in_part or digest == zeros)


class _Differences:
    """Tells what was skipped as free from damage."""

    def __init__(self, store: Store, source: Source) -> None:
        self._size_bytes = store.geometry.size_bytes
        self._here = _Free(skipped.noted(store), store.geometry)
        self._there = _Free(*_skipped_there(store, source))

    def explained(self, unit: int, ours: bytes, theirs: bytes) -> bool:
        """Whether of the units from `unit` on those that differ are free, by their digests."""
        return all(
            self._is_free(unit + at // DIGEST_BYTES, ours[at:end], theirs[at:end])
            for at in range(0, len(ours), DIGEST_BYTES)
            if ours[at : (end := at + DIGEST_BYTES)] != theirs[at:end]
        )

    def _is_free(self, unit: int, ours: bytes, theirs: bytes) -> bool:
        zeros = _of_zeros(min(UNIT_BYTES, self._size_bytes - unit * UNIT_BYTES))
        return self._here.explains(unit, ours, zeros) or self._there.explains(unit, theirs, zeros)


@cache
def _of_zeros(length: int) -> bytes:
    """The digest of so many zeros: a unit's, or of a disk's short last one."""
    return hashlib.blake2b(bytes(length), digest_size=DIGEST_BYTES).digest()


def _skipped_there(store: Store, source: Source) -> tuple[Runs, Geometry]:
    """What the source has skipped itself, in its own blocks; one of an older version can't tell."""
    if skipped.NAME not in exports_at(source.endpoint):
        return [], store.geometry
    theirs = source.call("identify").geometry(store.geometry.size_bytes)
    packed = source.export(skipped.NAME, runs.most_bytes(theirs.total_blocks))
    return runs.unpack(packed, theirs.total_blocks), theirs


class _Comparison:
    """Goes over a disk's maps and digests, piece by piece, and counts the blocks of each kind.

    A piece is a unit or a block, whichever is larger.
    """

    def __init__(self, store: Store, source: Source) -> None:
        self._store = store
        self._geometry = store.geometry
        self._units_a_piece = max(1, store.geometry.block_bytes // UNIT_BYTES)
        self._blocks_a_piece = max(1, UNIT_BYTES // store.geometry.block_bytes)
        self._read = source.reader(_EXPORT)
        self._differences = _Differences(store, source)
        self._verified = self._skipped = self._absent = 0
        self._wrong: list[int] = []

    def run(self) -> dict[str, Any]:
        """Compare; result and errors as of `compare`."""
        step = max(1, _STEP_UNITS // self._units_a_piece) * self._blocks_a_piece
        total = self._geometry.total_blocks
        for first in range(0, total, step):
            self._step(first, min(first + step, total))
        if self._wrong:
            raise StateError(
                f"{len(self._wrong)} of {self._verified} blocks differ from the source, the first "
                f"is {self._wrong[0]}"
            )
        unverified = total - self._verified - self._skipped - self._absent
        if total and not self._verified:
            raise StateError(
                f"nothing is proven: none of {total} blocks could be compared with the source. "
                f"{unverified} count as written here (all do once the disk has graduated, or its "
                f"image was written by something else), {self._skipped} were skipped as free, "
                f"{self._absent} are absent"
            )
        return {
            "verified_blocks": self._verified,
            "skipped_blocks": self._skipped,
            "unverified_blocks": unverified,
            "absent_blocks": self._absent,
        }

    def _step(self, first: int, end: int) -> None:
        """Compare the blocks `first..end`, which begin and end with a piece."""
        pieces = []
        for at in range(first, end, self._blocks_a_piece):
            piece = at, min(at + self._blocks_a_piece, end)
            absent, as_fetched = _look(self._store, *piece)
            self._absent += absent
            if as_fetched:
                pieces.append(piece)
        if not pieces:
            return
        offset, length = self._geometry.extent(first, end)
        unit, units = offset // UNIT_BYTES, -(-length // UNIT_BYTES)
        theirs = self._read(unit * DIGEST_BYTES, units * DIGEST_BYTES)
        ours = digests(self._store.image, unit, units, self._geometry.size_bytes)
        size = self._units_a_piece * DIGEST_BYTES
        for piece in pieces:
            number = (piece[0] - first) // self._blocks_a_piece
            place = slice(number * size, (number + 1) * size)
            at = unit + number * self._units_a_piece
            self._count(*piece, at, ours[place], theirs[place])

    def _count(self, first: int, end: int, unit: int, ours: bytes, theirs: bytes) -> None:
        """Count the blocks of a piece that was as fetched, by the digests of its units."""
        if ours == theirs:
            self._verified += end - first
        elif not _look(self._store, first, end)[1]:
            return  # written meanwhile
        elif self._differences.explained(unit, ours, theirs):
            self._skipped += end - first
        else:
            self._verified += end - first
            self._wrong.append(first)


def _look(store: Store, first: int, end: int) -> tuple[int, bool]:
    """How many of the blocks are absent, and whether all were fetched and none written here."""
    with store.lock:
        if store.present.all(first, end):
            return 0, not store.diverged.any(first, end)
        return end - first - store.present.count(first, end), False
