"""What a disk offers besides its bytes, as further exports of the same NBD port, all read-only.

    recent, heat, write-heat, dirty, diverged, skipped
                            a snapshot made when the export is opened (see docs/exports.md)
    digest, digests/UNIT    computed as they are read (see source/verify.py, source/digests.py)
    control                 the status object, JSON, padded with spaces
    control/VERB[/TOKEN]    a verb that another site's relocator uses: identify, epoch, seal, moved,
                            withdrawn; the token names the seal that is made, or undone, or is the
                            epoch that the other site knows of
    control/seal/TOKEN/BYTES    the same, and what was written last comes with the answer

A verb is carried out by the *first read* of its export, not by opening it, and not by a write: so a
connection can be made ready long before the switch, when one round trip is all there is, and
nothing is ever written to a server that ignores export names and would take it for the disk. What a
reply looks like is in source/replies.py. Who may open them is in doors.py.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

from relocator.errors import RelocatorError, StoreError
from relocator.source.replies import Content, Reply, encode
from relocator.store import runs
from relocator.store.store import Store

STATUS_BYTES = 64 << 10
VERBS = ("identify", "epoch", "seal", "moved", "withdrawn")
NAMES = (
    *("", "recent", "heat", "write-heat", "dirty", "diverged", "skipped"),
    *("digest", "digests/4096", "control"),
)


class Snapshot:
    """An export with the bytes `make` gives, and what follows them; made at the first read.

    `_making` lets one of several reads at once make them.
    """

    def __init__(self, size_bytes: int, make: Callable[[], tuple[bytes, Content | None]]) -> None:
        self.size_bytes = size_bytes
        self._make = make
        self._made: tuple[bytes, Content | None] | None = None
        self._making = threading.Lock()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset` on; past the content there are spaces."""
        with self._making:
            if self._made is None:
                self._made = self._make()
        content, rest = self._made
        piece = content[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        buffer, at = buffer[len(piece) :], offset + len(piece) - len(content)
        if rest is not None and len(buffer) and at < rest.size_bytes:
            within = buffer[: rest.size_bytes - at]
            rest.read_into(within, at)
            buffer = buffer[len(within) :]
        buffer[:] = b" " * len(buffer)

    def runs(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """All of it is data."""
        return [(offset, length, True)]


def verb_export(store: Store, call: Callable[[], Reply], rest_bytes: int = 0) -> Snapshot:
    """The export that carries out a verb when it is first read; its rest takes `rest_bytes`.

    A refusal is an answer, and is believed. A store that fails is none: its errno is what the read
    fails with, and who asks tries again.
    """

    def make() -> tuple[bytes, Content | None]:
        try:
            reply = call()
            return encode(reply._replace(fields={"ok": True, **reply.fields})), reply.rest
        except StoreError:
            raise
        except RelocatorError as error:
            return encode(Reply({"ok": False, "error": str(error)})), None

    maps_bytes = 4 * runs.most_bytes(store.geometry.total_blocks)
    return Snapshot(-(-(STATUS_BYTES + maps_bytes + rest_bytes) // 4096) * 4096, make)


def refusal_export(why: str) -> Snapshot:
    """The export of a verb for a client that has not shown the key."""
    content = encode(Reply({"ok": False, "shut": True, "error": why}))
    return Snapshot(STATUS_BYTES, lambda: (content, None))


def status_export(status: Callable[[], dict[str, Any]]) -> Snapshot:
    """The export `control`: the status object when it is first read."""

    def make() -> tuple[bytes, None]:
        return json.dumps(status(), sort_keys=True).encode() + b"\n", None

    return Snapshot(STATUS_BYTES, make)


def content_export(content: bytes) -> Snapshot:
    """An export of fixed content."""
    return Snapshot(max(len(content), 1), lambda: (content, None))
