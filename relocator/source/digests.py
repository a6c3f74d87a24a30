"""Digests of a disk's content, computed by the source as they are read: content without its bytes.

An export `digests/UNIT` has 32 bytes of BLAKE2b for each UNIT bytes of the disk, of the short last
unit too. Two contents of one digest are taken for the same, so it has 256 bits. What the source
does not hold itself it can't vouch for: such a unit has `UNKNOWN`, which is nobody's digest.

A digest is of an instant, like a read. Who takes content by it keeps the rules of fetches.
"""

import hashlib
import time
from collections.abc import Callable

from relocator.errors import StoreError, UpstreamError
from relocator.source.connection import Connection, Guard
from relocator.source.endpoint import Endpoint
from relocator.source.handles import connected
from relocator.source.requests import Request
from relocator.store.geometry import Geometry
from relocator.store.image import Image

DIGEST_BYTES = 32
UNKNOWN = bytes(DIGEST_BYTES)
LEAST_UNIT_BYTES, MOST_UNIT_BYTES = 1 << 12, 1 << 20
#: so long a lost source is waited for before its caller looks what has become of it
PATIENCE_S = 10.0
Valid = Callable[[int, int], bool]


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """The digest of some content."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def export_name(unit_bytes: int) -> str:
    """The name of the export with the digests of units of that size."""
    return f"digests/{unit_bytes}"


def unit_of(name: str) -> int | None:
    """The unit of the export `name`, in bytes; None if there is no such export."""
    text = name.removeprefix("digests/")
    if not text.isdecimal() or name != export_name(int(text)):
        return None
    unit = int(text)
    fits = LEAST_UNIT_BYTES <= unit <= MOST_UNIT_BYTES and unit & (unit - 1) == 0
    return unit if fits else None


class DigestsExport:
    """The export for units of `unit_bytes`.

    `valid` tells whether the blocks `first..end` of `geometry` are in `image`.
    """

    def __init__(self, image: Image, geometry: Geometry, unit_bytes: int, valid: Valid) -> None:
        self._image = image
        self._geometry = geometry
        self._unit_bytes = unit_bytes
        self._valid = valid
        self.size_bytes = -(-geometry.size_bytes // unit_bytes) * DIGEST_BYTES

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the digests from byte `offset` on."""
        first = offset // DIGEST_BYTES
        end = -(-(offset + len(buffer)) // DIGEST_BYTES)
        made = b"".join(self._digest(unit) for unit in range(first, end))
        skip = offset - first * DIGEST_BYTES
        buffer[:] = made[skip : skip + len(buffer)]

    def _digest(self, unit: int) -> bytes:
        offset = unit * self._unit_bytes
        length = min(self._unit_bytes, self._geometry.size_bytes - offset)
        if not self._valid(*self._geometry.touched(offset, length)):
            return UNKNOWN
        data = bytearray(length)
        self._image.read_into(data, offset)
        return digest(data)

    def runs(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """All of it is data."""
        return [(offset, length, True)]


class Digests:
    """Asks the source at `endpoint` for digests of units of `unit_bytes`, by its own connection.

    An answer's `data` is the digests, one after the other.
    """

    def __init__(self, endpoint: Endpoint, unit_bytes: int, guard: Guard | None = None) -> None:
        self.unit_bytes = unit_bytes
        name = export_name(unit_bytes)
        self._endpoint = endpoint.with_export(name)
        self._guard = guard
        self._connection = Connection(self._endpoint, name, guard)

    def start(self) -> None:
        """Connect, in the background."""
        self._connection.start()

    def ask(self, first: int, end: int, done: Callable[[Request], None]) -> None:
        """Ask for the units `first..end`; `done` gets the answer or, if the source is lost for
        `PATIENCE_S`, an error; on the connection's thread."""
        length = (end - first) * DIGEST_BYTES
        until_s = time.monotonic() + PATIENCE_S
        self._connection.submit(Request("read", first * DIGEST_BYTES, length, done, until_s))

    @property
    def connected(self) -> bool:
        """Whether a question would be sent at once."""
        return self._connection.connected

    def are_given(self) -> bool:
        """Whether they can be connected to at this moment; looked at by one more connection."""
        try:
            with connected(self._endpoint) as handle:
                if self._guard is not None:
                    self._guard.check(handle)
        except (UpstreamError, StoreError):
            return False
        return True

    def renew(self) -> None:
        """As `Connection.renew`."""
        self._connection.renew()

    def close(self) -> None:
        """Disconnect; what waits fails. Must not be called from a `done`."""
        self._connection.close()
