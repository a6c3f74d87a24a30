"""The local store of a disk: the raw image, the maps, and the commit that ties them together.

    DIR/disk.img    sparse raw image; once complete, an ordinary image for anything
    DIR/map.live    present, dirty and diverged bits, mapped shared (see maps.py)
    DIR/map.durable the same as of the last commit
    DIR/meta.json   what the disk knows of itself (see meta.py)
    DIR/skipped     which blocks became zeros because they were free (see skipped.py)
    DIR/lock        held while a process uses the store
    DIR/spare       room that is kept back for meta.json

The image may also be elsewhere (a block device, say), and a target may do without a directory: its
maps are then in memory and end with it.

The crash rule. Data is written before its present bit is set, and the bit is set before the reply:
so the live map never promises more than the page cache holds. A commit makes bits durable only
after the data they speak of: so the durable map never promises more than the disk holds. A dirty
bit is set before the data; after a power failure unflushed data may be on the disk without its
dirty bit, so then the dirty maps are void: the epoch ends, and with it all that rests on it.

`lock` guards the bitmaps, the counts, the set of changed pages and `meta`. It is never held across
I/O; who calls a function whose name ends in `_locked` holds it. Commits run one at a time
(`_commit_lock`) and are shared: a flush that arrives while one runs waits for the next, however
many flushes wait with it. Changes of `meta` run one at a time too (`_update_lock`), each from the
newest value to the file; both locks are held across I/O and guard nothing else. The kernel tells of
a failure once: `_checking` is held while it is asked.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from relocator.errors import StoreError
from relocator.store import meta as metadata
from relocator.store.bitmap import Bitmap
from relocator.store.geometry import Geometry
from relocator.store.image import Image
from relocator.store.maps import PAGE_BITS, PAYLOAD_BYTES, PLANES, DurableMap, LiveMap, boot_id
from relocator.store.meta import Meta

Runs = list[tuple[int, int]]
_PRESENT, _DIRTY, _DIVERGED = range(len(PLANES))
_FULL_PAGE = b"\xff" * PAYLOAD_BYTES
UNRECORDED = (
    "power failed, or the host was started anew, while this disk was active: which blocks were "
    "written here is not known"
)


class Store:
    """An open store. Made by `open_store` and `open_target` (see opening.py)."""

    def __init__(
        self, meta: Meta, image: Image, directory: Path | None = None, lock_fd: int | None = None
    ) -> None:
        self.directory = directory
        self.meta = meta
        self.geometry = Geometry(meta.size_bytes, meta.block_bytes)
        self.image = image
        self.lock = threading.Lock()
        self._lock_fd = lock_fd
        total = self.geometry.total_blocks
        path = directory / "map.live" if directory else None
        self._live = LiveMap(path, total, boot_id(), wanted=not meta.clean)
        self._durable: DurableMap | None = None
        self._planes = [self._live.planes[name] for name in PLANES]
        self.present, self.dirty, self.diverged = self._planes
        self._changed: set[int] = set()
        #: nothing of ours writes the image any more, until the process ends
        self.still = False
        try:
            if directory:
                self._durable = DurableMap(directory / "map.durable", total)
                self._recover(self._durable)
            self.present_blocks = total if meta.complete else self.present.count()
            self.dirty_blocks = self.dirty.count()
        except BaseException:
            self._close_maps()
            raise
        self._live.rest()
        self._commit_lock = threading.Lock()
        self._update_lock = threading.Lock()
        self._checking = threading.Lock()
        self._lost: str | None = None
        self._commits_asked = 0
        self._commits_done = 0
        #: what an operator should know of how it was found
        self.found: tuple[str, ...] = ()
        #: why no commit can succeed any more, once the disk has failed one
        self.failure: str | None = None

    def _recover(self, durable: DurableMap) -> None:
        """Start from the live map if it is of this boot, else from the durable one."""
        if self.meta.creating:
            self._live.vouch()
        elif self._live.believed:
            self._owe_what_differs(durable)
            self._diverge_what_is_dirty(durable)
        else:
            if not self.meta.clean:  # the kernel may still show what a failed sync has not written
                self.image.forget()
            for page, bits in durable.committed():
                plane, first, _ = durable.span(page)
                self._planes[plane].insert(first, bits)
            if durable.versions < self.meta.map_versions:
                raise StoreError(
                    f"store={self.directory}: map.durable is damaged, and what it says is older "
                    "than what was durable; put it back from a backup, or copy anew elsewhere"
                )
            # Then all counts as written, unless nothing has been since the last commit. That is
            # durable before the live map is believed: by then nobody knows of the failure.
            if not self.meta.recorded:
                base = self.meta.base
                void = None if base is None else base.void
                self._replace_meta(epoch=self.meta.epoch + 1, base=void)
            self._diverge_what_is_dirty(durable)
            self._live.vouch()

    def _owe_what_differs(self, durable: DurableMap) -> None:
        """Whatever the live map has and the durable one hasn't is owed to the next commit."""
        known: set[int] = set()
        for page, bits in durable.committed():
            known.add(page)
            plane, first, end = durable.span(page)
            if self._planes[plane].extract(first, end) != bits:
                self._changed.add(page)
        for plane in range(len(PLANES)):
            self._changed.update(set(self._used_pages(durable, plane)) - known)

    def _diverge_what_is_dirty(self, durable: DurableMap) -> None:
        """Let what is dirty have diverged, as `mark_dirty` takes it for granted.

        It hasn't where power failed in a commit that had written one of the two pages, or where an
        older version, which set them the other way round, was killed. In standby nothing was
        written, and what had diverged would be kept though it is stale.
        """
        if self.meta.standby:
            return
        for page in self._used_pages(durable, _DIRTY):
            _, first, end = durable.span(page)
            dirty, diverged = (
                int.from_bytes(plane.extract(first, end), "little")
                for plane in (self.dirty, self.diverged)
            )
            if dirty & ~diverged:
                both = (dirty | diverged).to_bytes(-(-(end - first) // 8), "little")
                self.diverged.insert(first, both)
                self._owe_locked(_DIVERGED, first, end)

    def _used_pages(self, durable: DurableMap, plane: int) -> Iterator[int]:
        """The durable map's pages for which a bit is set in the live one."""
        bits, at = self._planes[plane], 0
        while (at := bits.next_set(at, bits.bits)) < bits.bits:
            (page,) = durable.pages(plane, at, at + 1)
            yield page
            _, _, at = durable.span(page)

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know of it."""
        lost = (f"{UNRECORDED}; the way back copies all of it",) if self.meta.unrecorded else ()
        return (*self.found, *lost)

    @property
    def all_present(self) -> bool:
        """Whether every block is present, though perhaps not durably."""
        return self.present_blocks == self.geometry.total_blocks

    @property
    def absent_bytes(self) -> int:
        """How much isn't here."""
        return (self.geometry.total_blocks - self.present_blocks) * self.geometry.block_bytes

    @property
    def owes_commit(self) -> bool:
        """Whether a map has changed since the last commit."""
        return bool(self._changed)

    def mark_present_locked(self, first: int, end: int) -> None:
        """Blocks whose data has been written are valid here."""
        if added := self.present.set(first, end):
            self.present_blocks += added
            self._owe_locked(_PRESENT, first, end)

    def mark_dirty(self, first: int, end: int) -> None:
        """Blocks are about to be written by the VM: a superset is safe, so before the data.

        What is dirty has diverged, so one look at the dirty plane is enough. It is set last: who
        looks holds no lock, and who is killed in between leaves what the next process believes.
        """
        if first == end or self.dirty.all(first, end):
            return
        with self.lock:
            if self.diverged.set(first, end):
                self._owe_locked(_DIVERGED, first, end)
            self.dirty_blocks += self.dirty.set(first, end)
            self._owe_locked(_DIRTY, first, end)

    def drop(self, stale: Runs) -> int:
        """Blocks are no longer valid here; returns how many were. Not durable until a commit.

        Blocks written here are kept: they are newer than any source.
        """
        dropped = 0
        with self.lock:
            for start, stop in stale:
                for first, end in self.diverged.clear_runs(start, stop):
                    dropped += self.present.clear(first, end)
                    self._owe_locked(_PRESENT, first, end)
            self.present_blocks -= dropped
        return dropped

    def begin_epoch(self) -> Bitmap:
        """Begin the dirty map anew while writes go on; returns what was dirty until then.

        The new epoch is durable before the first bit moves: a crash in between leaves too much
        dirty. A write that marks its blocks meanwhile finds each in one map or the other. What it
        finds in the ended one it may still be writing: who relies on that map waits for it first.
        """
        total = self.geometry.total_blocks
        with self._update_lock:  # without a commit: after a power failure all dirty maps are void
            self._replace_meta(epoch=self.meta.epoch + 1)
        ended, at = Bitmap(total), 0
        while (at := self.dirty.next_set(at, total)) < total:
            first = at // PAGE_BITS * PAGE_BITS
            end = at = min(first + PAGE_BITS, total)
            with self.lock:  # for a page at a time: a write that marks waits for no more
                ended.insert(first, self.dirty.extract(first, end))
                self.dirty_blocks -= self.dirty.clear(first, end)
                self._owe_locked(_DIRTY, first, end)
        return ended

    def begin_copy(self, absent: Runs) -> None:
        """Everything but `absent` is valid, nothing has been written here: a return trip begins."""
        total = self.geometry.total_blocks
        with self.lock:
            for plane in (_DIRTY, _DIVERGED):
                self._wipe_locked(plane)
            self.dirty_blocks = 0
            self.present.set(0, total)
            for first, end in absent:
                self.present.clear(first, end)
            self._owe_locked(_PRESENT, 0, total)
            self.present_blocks = self.present.count()

    def mark_all_written(self) -> None:
        """What was written here is not known: any block of a complete disk may have been."""
        total = self.geometry.total_blocks
        with self.lock:
            for plane in (_DIVERGED, _DIRTY):  # as in `mark_dirty`
                self._planes[plane].set(0, total)
                self._owe_locked(plane, 0, total)
            self.dirty_blocks = total

    def _wipe_locked(self, plane: int) -> None:
        total = self.geometry.total_blocks
        if self._durable is not None:
            self._changed.update(self._used_pages(self._durable, plane))
        self._planes[plane].clear(0, total)

    def _owe_locked(self, plane: int, first: int, end: int) -> None:
        if self._durable is not None and first < end:
            self._changed.update(self._durable.pages(plane, first, end))

    def update(self, **changes: Any) -> None:
        """Change fields of `meta`, durably after everything written so far.

        Nobody sees the new value before it is durable.

        Raises:
            StoreError: the commit failed, or meta.json could not be replaced; `meta` has not
                changed, and the same can be asked again.
        """
        with self._update_lock:
            self.commit()
            self._replace_meta(**changes)

    def note_written(self) -> None:
        """Note when the image was written last: from now on nothing of ours does.

        The note stays, whatever else of `meta` is changed before the process ends.

        Raises:
            StoreError: as of `update`.
        """
        with self._update_lock:
            self.commit()
            if self.meta.written_ns is None:
                self._replace_meta(written_ns=self._written_ns())
            self.still = True

    def _written_ns(self) -> int | None:
        """When the image was written last, to be noted: after a power failure it says the same.

        If it is noted already it is that: something else may have written it meanwhile.
        """
        if self.meta.written_ns is not None:
            return self.meta.written_ns
        written_ns = self.image.modified_ns
        if written_ns is not None and self.directory is not None:
            self._sync(self.image.sync_times)
        return written_ns

    def _replace_meta(self, **changes: Any) -> None:
        """Change fields of `meta`, durably; with `_update_lock`."""
        versions = 0 if self._durable is None else self._durable.versions
        fresh = replace(self.meta, **{"map_versions": versions, "written_ns": None, **changes})
        if fresh.settled or self.still:
            fresh = replace(fresh, written_ns=self._written_ns())
        if self.directory is not None:
            try:
                metadata.write(self.directory, fresh)
            except StoreError:
                with suppress(StoreError):  # it may be there: the next process must not believe it
                    metadata.write(self.directory, self.meta)
                raise
        with self.lock:
            self.meta = fresh

    def commit(self) -> None:
        """Make every acknowledged write, and the bits that speak of them, durable.

        Raises:
            StoreError: the data or the map could not be made durable, now or at an earlier
                commit; after that no commit succeeds, as the kernel may have dropped the data.
        """
        with self.lock:
            self._commits_asked += 1
            ticket = self._commits_asked
        with self._commit_lock:
            if self._commits_done >= ticket:
                return
            with self.lock:
                covered = self._commits_asked
            self._commit()
            self._commits_done = covered

    def _commit(self) -> None:
        if self.failure is not None:
            raise StoreError(f"an earlier commit failed: {self.failure}", errno.EIO)
        # 1. Snapshot the bits: what they promise has been written, if not yet to the disk.
        snapshot = [] if self._durable is None else self._snapshot(self._durable)
        self.check()
        # 2. The data.
        self._sync(self.image.sync)
        if self._durable is None or not snapshot:
            return
        # 3. The map beside the old one, with a checksum.
        try:
            self._durable.write(snapshot)
        except OSError as error:  # nothing is lost: the old map stands, the next commit tries again
            with self.lock:
                self._changed.update(page for page, _ in snapshot)
            raise StoreError(f"commit of {self.directory}: {error}", error.errno or 5) from error
        # 4. And that to the disk.
        self._sync(self._durable.sync)

    def check(self) -> None:
        """Look whether the live map has all that was set in it, as far as the kernel knows.

        Raises:
            StoreError: it may have lost bits, and what is done by them may overwrite what is newer:
                this process should end. The next one goes on from the last commit.
        """
        with self._checking:
            if self._lost is None:
                try:
                    self._live.check()
                except OSError as error:
                    self._live.disown()
                    self._lost = self.failure = (
                        f"store={self.directory}: the kernel could not write map.live: {error}"
                    )
            if self._lost is not None:
                raise StoreError(self._lost, errno.EIO)

    def _sync(self, sync: Callable[[], None]) -> None:
        """Make something durable. After a failure nothing here is believed durable any more.

        The kernel may have dropped what it could not write, and would report the next one as done:
        to this process, and to one that is started after it.
        """
        try:
            sync()
        except OSError as error:
            self._live.disown()
            self.failure = f"commit of {self.image.path}: {error}"
            raise StoreError(self.failure, errno.EIO) from error

    def _snapshot(self, durable: DurableMap) -> list[tuple[int, bytes]]:
        with self.lock:
            pages = sorted(self._changed)
            self._changed.clear()
            spans = [(page, *durable.span(page)) for page in pages]
            return [
                (page, _shared(self._planes[plane].extract(first, end)))
                for page, plane, first, end in spans
            ]

    def close(self) -> None:
        """Commit and let go of the store."""
        try:
            self.update(clean=True)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the store without making anything durable."""
        self._close_maps()
        self.image.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)

    def _close_maps(self) -> None:
        self._live.close()
        if self._durable is not None:
            self._durable.close()


def _shared(bits: bytes) -> bytes:
    """The same: a disk that is all here has many full pages, and they need memory only once."""
    return _FULL_PAGE if bits == _FULL_PAGE else bits
