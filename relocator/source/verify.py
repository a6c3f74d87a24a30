"""Proof of a copy: digests of blocks, made at both sites, compared here; no data moves again.

The source offers an export `digest`: for each 4 KiB of the disk the 16 bytes of its BLAKE2b digest.
Compared is every block that was fetched and never written here; what the guest has written since is
newer than the source on purpose.
"""

import hashlib
import re
from typing import Any

from relocator.errors import StateError, UpstreamError
from relocator.source.remote import Source
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
    """Compare with the source; returns how many blocks were compared and how many left out.

    Raises:
        StateError: a block differs; names the first.
        UpstreamError: the source can't be read.
    """
    try:
        return _compare(store, source)
    except UpstreamError as error:
        export = source.endpoint.with_export(_EXPORT).uri
        why = _CALL.sub("", str(error).removeprefix(f"{export}: "))
        raise UpstreamError(
            f"nothing is proven: the source {source.endpoint.uri} can't be read ({why}). Its "
            "server must run, and be reached from here, until `verify` has ended: start it, and "
            "verify again. The copy is as it was",
            error.errno,
        ) from error


def _compare(store: Store, source: Source) -> dict[str, Any]:
    geometry = store.geometry
    units_a_piece = max(1, geometry.block_bytes // UNIT_BYTES)
    blocks_a_piece = max(1, UNIT_BYTES // geometry.block_bytes)
    size = units_a_piece * DIGEST_BYTES
    step = max(1, _STEP_UNITS // units_a_piece) * blocks_a_piece
    compared = 0
    wrong: list[int] = []
    reader = source.reader(_EXPORT)
    for first in range(0, geometry.total_blocks, step):
        end = min(first + step, geometry.total_blocks)
        pieces = [
            (at, min(at + blocks_a_piece, end))
            for at in range(first, end, blocks_a_piece)
            if _as_fetched(store, at, min(at + blocks_a_piece, end))
        ]
        if not pieces:
            continue
        offset, length = geometry.extent(first, end)
        unit, units = offset // UNIT_BYTES, -(-length // UNIT_BYTES)
        theirs = reader(unit * DIGEST_BYTES, units * DIGEST_BYTES)
        ours = digests(store.image, unit, units, geometry.size_bytes)
        for piece_first, piece_end in pieces:
            at = (piece_first - first) // blocks_a_piece * size
            if ours[at : at + size] != theirs[at : at + size] and _as_fetched(
                store, piece_first, piece_end
            ):
                wrong.append(piece_first)
            compared += piece_end - piece_first
    if wrong:
        raise StateError(
            f"{len(wrong)} of {compared} blocks differ from the source, the first is {wrong[0]}"
        )
    return {"verified_blocks": compared, "unverified_blocks": geometry.total_blocks - compared}


def _as_fetched(store: Store, first: int, end: int) -> bool:
    """Whether all of the blocks `first..end` were fetched and never written here."""
    with store.lock:
        return store.present.all(first, end) and not store.diverged.any(first, end)
