"""What is written at a source that is not a relocator, but whose QEMU records it in a dirty bitmap.

    D: what the bitmap says now, in this disk's blocks. It began before the first block was copied,
       and only grows. So what is not in it holds for good, and what is may have been written again
    round:     D read -> its blocks are dropped, and not copied ahead any more: it would be in vain
    activate:  the source stands still -> D read -> its blocks are dropped -> durable -> writes pass

What a switch would leave behind is D, then. It is begun anew by another bitmap only.

A D that lacks what was in an earlier one is of a bitmap that was cleared or replaced, and one that
was missing for a while may have been: what was written meanwhile is not known, and everything that
was copied is dropped. The last D is kept in STORE/bitmap, so that a restart doesn't hide that.
Dropped is always durable before a new D is kept: a power failure brings back no block that only an
older D knew to be stale.

`lock`, the activation's, orders what is dropped with a switch.
"""

import threading
from collections.abc import Callable
from typing import Any

from relocator.errors import RelocatorError, StoreError, UpstreamError
from relocator.running.insisting import insist
from relocator.running.parts import Parts, Transfer
from relocator.running.rounds import check_standby
from relocator.source.bitmaps import DirtyBitmap
from relocator.source.endpoint import Endpoint
from relocator.store import runs
from relocator.store.bitmap import Bitmap
from relocator.store.meta import replace_file
from relocator.store.store import Runs


class Recorded:
    """What the bitmap at `endpoint` says that the store rests on, and what follows from it here."""

    def __init__(
        self, parts: Parts, endpoint: Endpoint, transfer: Transfer, lock: threading.Lock
    ) -> None:
        self._parts = parts
        self._store = parts.store
        self._transfer = transfer
        self._lock = lock
        assert parts.store.directory is not None and parts.store.meta.bitmap is not None
        self._bitmap = DirtyBitmap(endpoint, parts.store.meta.bitmap)
        self._path = parts.store.directory / "bitmap"
        self._last = self._load()
        self._found: Bitmap | None = None
        self._read = False  # in this process; until then nothing is copied
        self._set_aside(None)
        #: what an operator should know
        self.notes: tuple[str, ...] = ()
        self.brought_bytes = self.stale_blocks = 0
        self.dropped_blocks = 0

    def _load(self) -> Bitmap | None:
        """The last D that this store knows of."""
        found = Bitmap(self._store.geometry.total_blocks)
        try:
            for first, end in runs.unpack(self._path.read_bytes(), found.bits):
                found.set(first, end)
        except (OSError, RelocatorError):
            return None
        return found

    @property
    def absent_blocks(self) -> int:
        """How many blocks the copy ahead still has to bring."""
        left = self._last.count() if self._last is not None and self._read else 0
        return max(0, self._store.geometry.total_blocks - self._store.present_blocks - left)

    @property
    def due(self) -> bool | None:
        """Always: the sooner a block is known to be written, the less is copied in vain."""
        return True if self._read else None

    @property
    def begun_anew(self) -> bool:
        """The bitmap tells."""
        return False

    def begin(self) -> None:
        """Nothing is asked that only a relocator knows."""

    def look(self) -> None:
        """What is stale is dropped at once, and left for the switch."""

    def drop(self) -> int:
        """Drop what is in the bitmap, and copy it ahead no more."""
        found = self._bitmap.read(self._store.geometry)
        with self._lock:
            check_standby(self._parts)
            try:
                dropped = self._apply(found)
            except StoreError:  # what came now would rest on a D that a restart doesn't know
                self._set_aside(None)
                self._transfer.hydration.disown_fetches()
                raise
        if found is None:
            raise UpstreamError(f"the source has no bitmap '{self._bitmap.name}' any more")
        return dropped

    def _apply(self, found: Bitmap | None) -> int:
        """Drop what isn't certain, and note what the bitmap says; with the lock."""
        known = self._continues(found)
        self._set_aside(found)
        if not known:
            self._transfer.hydration.disown_fetches()
        dropped = self._store.drop(self._stale(found if known else None))
        if not known:
            self._store.commit()
            self._note(dropped, "missing" if found is None else "cleared, or replaced by another")
        grown = self._last is None or found is None or found.count() != self._last.count()
        if found is not None and (grown or not known):
            replace_file(self._path, runs.pack(found))
        if found is not None and self._store.meta.bitmap is None:  # the disk was given back
            self._store.update(bitmap=self._bitmap.name)
        self._last, self._read = found, found is not None
        return dropped

    def _set_aside(self, found: Bitmap | None) -> None:
        """What is not copied ahead: what was found, or everything."""
        if found is None:
            found = Bitmap(self._store.geometry.total_blocks)
            found.set(0, found.bits)
        self._transfer.hydration.background.aside = found

    def _continues(self, found: Bitmap | None) -> bool:
        """Whether it is of the bitmap that was read before, as far as can be told."""
        if found is None or self._last is None:
            return False
        return all(found.all(*run) for run in self._last.set_runs(0, found.bits))

    def _stale(self, found: Bitmap | None) -> Runs:
        """What is here and may not be right: of what was found, or everything."""
        total, present = self._store.geometry.total_blocks, self._store.present
        if found is None:
            return [(0, total)]
        return [one for run in found.set_runs(0, total) for one in present.set_runs(*run)]

    def _note(self, dropped: int, why: str) -> None:
        if dropped:
            what = f"the source's bitmap '{self._bitmap.name}' was {why}"
            self.notes = (f"{what}: all that had been copied ahead was dropped",)

    # What the activation asks; see sealing.py for the same of a relocator.

    def prepare(self, _token: str) -> None:
        """A round leaves a connection ready."""

    def unprepare(self) -> None:
        """The bitmap is not read any more."""
        self._bitmap.close()

    def ask(self, _token: str, pause: Callable[[float], None]) -> None:
        """Read the bitmap of a source that stands still; errors as of `insist`."""
        read = lambda: self._bitmap.read(self._store.geometry)  # noqa: E731
        self._found = insist(self._parts, read, pause, "the bitmap can't be read yet")

    def settle(self) -> dict[str, Any]:
        """Drop what is stale; what is then known of the source, as changes of `Meta`."""
        known = self._continues(self._found)
        self._transfer.hydration.disown_fetches()
        self.dropped_blocks = self._store.drop(self._stale(self._found if known else None))
        if not known:
            missing = self._found is None
            self._note(self.dropped_blocks, "missing" if missing else "cleared or replaced")
            self._last = None
        self._transfer.hydration.background.aside = None
        self._read = False  # should the disk be given back: a round is needed before it is used
        self._bitmap.close()
        return {"bitmap": None}

    def join(self) -> None:
        """Nothing is stored by a thread of this."""
