"""What a guest's request does to the disk.

What is present is read from the store, the rest is hydrated; writes are local whatever the state,
and the source is never written. Blocks covered in part by a write are hydrated first. Zero and trim
make blocks present too, or old data would come back. In standby, reads pass through and nothing is
kept.

Trim is advice, so on a disk with an upstream it is rounded inwards to whole blocks: a block trimmed
in part keeps its data and costs no round trip. What is trimmed wholly reads as zero from then on.

Once all is here reads no longer consult the maps. Every change passes the gate, which counts it,
and refuses it when the disk is sealed or not active yet. The lifecycle says which of these holds.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from time import perf_counter_ns
from typing import Any, TypeVar

from relocator.copying.heat import Heat
from relocator.copying.hydration import Hydration
from relocator.copying.recent import Recent
from relocator.errors import NotKeptError, OutdatedError, StateError, StoreError, UpstreamError
from relocator.running.latency import Requests
from relocator.running.lifecycle import OUTDATED, Lifecycle
from relocator.store.store import Store

#: (offset, length, whether it holds data), ascending
Run = tuple[int, int, bool]
_MOST_RUNS = 4096
T = TypeVar("T")
_ZERO_STEP_BYTES = 32 << 20  # of a fragmented map, what takes the store's lock for a while


def clipped(offset: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    """`offset..end` in pieces of at most `step` bytes that end at its multiples."""
    while offset < end:
        stop = min(end, (offset // step + 1) * step)
        yield offset, stop
        offset = stop


class Disk:
    """The disk as its clients see it. Without `hydration`, all of it is here.

    `requests` counts what is answered.
    `on_miss` is told of every read that waits for the source: the blocks `(first, end)`.
    `on_refusal` is told when the gate refuses a write: it raises, or makes writes pass and returns.
    """

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        heat: Heat,
        recent: Recent,
        *,
        hydration: Hydration | None = None,
        on_miss: Callable[[int, int], None] | None = None,
        on_refusal: Callable[[StateError], None] | None = None,
        requests: Requests | None = None,
    ) -> None:
        self._store = store
        self._geometry = store.geometry
        self._image = store.image
        self._lifecycle = lifecycle
        self._gate = lifecycle.gate
        self._heat = heat
        self._note_read, self._note_place = heat.note_read, recent.note_read
        self._all_present = store.present.all
        self._hydration = hydration
        self._on_miss = on_miss
        self._on_refusal = on_refusal
        self.size_bytes = store.geometry.size_bytes
        self._requests = requests or Requests()
        self._answered = self._requests.by_kind

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes at `offset`, fetching what is absent."""
        start_ns = perf_counter_ns()
        length = len(buffer)
        self._note_read(offset)
        self._note_place(offset, length)
        lifecycle = self._lifecycle
        if lifecycle.all_here or (
            not lifecycle.pass_through
            and self._all_present(*self._geometry.touched(offset, length))
        ):
            self._image.read_into(buffer, offset)
            self._answered["read_present"].add(perf_counter_ns() - start_ns)
            return
        self._read_absent(buffer, offset, *self._geometry.touched(offset, length))
        self._answered["read_absent"].add(perf_counter_ns() - start_ns)

    def write(self, data: memoryview, offset: int, *, fua: bool) -> None:
        """Write `data` at `offset`; with `fua`, durably."""
        start_ns = perf_counter_ns()
        self._heat.note_write(offset)
        self._modify(offset, len(data), lambda: self._image.write(data, offset))
        if fua:
            self.flush()
        self._answered["write"].add(perf_counter_ns() - start_ns)

    def zero(self, offset: int, length: int, *, punch: bool, fua: bool) -> None:
        """Make `length` bytes read as zero; `punch` gives their space back."""
        for start, stop in clipped(offset, offset + length, _ZERO_STEP_BYTES):
            self._zero_piece(start, stop - start, punch)
        if fua:
            self.flush()

    def _zero_piece(self, offset: int, length: int, punch: bool) -> None:
        self._modify(offset, length, lambda: self._image.zero(offset, length, punch=punch))

    def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """Give the space of `length` bytes back, of whole blocks where there is an upstream."""
        if self._hydration is not None:
            _, first, end = self._geometry.split(offset, length)
            offset, length = self._geometry.extent(first, end) if first < end else (offset, 0)
        self.zero(offset, length, punch=True, fua=fua)

    def flush(self) -> None:
        """Make every acknowledged write durable."""
        self._store.commit()

    def runs(self, offset: int, length: int) -> list[Run]:
        """What holds data and what is a hole, from `offset` on; absent blocks count as data."""
        if self._lifecycle.all_here:
            found = self._image.data_runs(offset, offset + length)
            return [(start, end - start, data) for start, end, data in islice(found, _MOST_RUNS)]
        return self._runs_of_maps(offset, offset + length)

    def status(self) -> dict[str, Any]:
        """The disk's part of the status object."""
        return {"size_bytes": self.size_bytes, **self._requests.status()}

    def _runs_of_maps(self, offset: int, end: int) -> list[Run]:
        found: list[Run] = []
        block = self._geometry.block_bytes
        while offset < end and len(found) < _MOST_RUNS:
            first, last = self._geometry.touched(offset, end - offset)
            stop = min(end, self._store.present.next_set(first, last) * block)
            if self._lifecycle.pass_through:
                stop = end
            if stop > offset:
                found.append((offset, stop - offset, True))
                offset = stop
                continue
            stop = min(end, self._store.present.next_clear(first, last) * block)
            of_image = islice(self._image.data_runs(offset, stop), _MOST_RUNS - len(found))
            found += [(start, run_end - start, data) for start, run_end, data in of_image]
            offset = stop
        return found

    def _read_absent(self, buffer: memoryview, offset: int, first: int, end: int) -> None:
        lifecycle = self._lifecycle
        passes = lifecycle.pass_through
        if passes and self._read_through(buffer, offset, lambda: lifecycle.pass_through):
            return
        if lifecycle.outdated:
            raise OutdatedError(OUTDATED)
        on_miss = self._on_miss
        meanwhile = None if on_miss is None else lambda: on_miss(first, end)
        try:
            self._hydrate(first, end, meanwhile)
        except NotKeptError:
            self._read_around_the_store(buffer, offset)
        else:
            self._image.read_into(buffer, offset)

    def _hydrate(self, first: int, end: int, meanwhile: Callable[[], None] | None = None) -> None:
        _needed(self._hydration).hydrate(first, end, meanwhile)

    def _read_around_the_store(self, buffer: memoryview, offset: int) -> None:
        """The store is full: present blocks from it, the others from the source, not kept."""
        block = self._geometry.block_bytes
        for start, stop in clipped(offset, offset + len(buffer), block):
            piece, number = buffer[start - offset : stop - offset], start // block
            absent = partial(self._absent, number)
            if not (absent() and self._read_through(piece, start, absent)):
                self._image.read_into(piece, start)

    def _absent(self, number: int) -> bool:
        return not self._store.present[number]

    def _read_through(self, buffer: memoryview, offset: int, still: Callable[[], bool]) -> bool:
        """Fill `buffer` from the source; False if that failed and it is `still` no longer needed.

        The handover goes by other connections than a guest's reads: while one of those waits for
        its own to be mended the disk may have been activated, even completed, which ends them all.
        """
        try:
            _needed(self._hydration).read_through(buffer, offset)
        except UpstreamError:
            if still():
                raise
            return False
        return True

    def _modify(self, offset: int, length: int, apply: Callable[[], object]) -> None:
        """Let `apply` change the bytes `offset..offset+length`, by the rules of gate and maps.

        Raises:
            StateError: the gate is shut.
            StoreError: the store refused; nothing was marked present.
        """
        if length == 0:
            return
        while True:
            turn = self._enter()
            try:
                absent = self._change(offset, length, apply)
            except OSError as error:
                message = f"write of {length} bytes at {offset}: {error}"
                raise StoreError(message, error.errno or errno.EIO) from error
            finally:
                self._gate.leave(turn)
            if not absent:
                return
            for edge in absent:  # outside the gate: who drains it must not wait for the source
                self._hydrate(edge, edge + 1)

    def _enter(self) -> int:
        try:
            return self._gate.enter()
        except StateError as refusal:
            if self._on_refusal is None:
                raise
            self._on_refusal(refusal)
            return self._gate.enter()

    def _change(self, offset: int, length: int, apply: Callable[[], object]) -> Sequence[int]:
        """Let `apply` change the bytes, unless blocks covered in part are absent: which."""
        touched = self._geometry.touched(offset, length)
        if self._lifecycle.all_here or self._store.present.all(*touched):
            self._store.mark_dirty(*touched)
            apply()
            return ()
        edges, first, end = self._geometry.split(offset, length)
        if edges and (absent := [edge for edge in edges if not self._store.present[edge]]):
            return absent
        with _needed(self._hydration).writing(first, end):
            self._store.mark_dirty(*touched)
            apply()
        return ()


def _needed(part: T | None) -> T:
    """What an absent block is fetched with; a disk without upstream has no such block."""
    if part is None:
        raise StoreError("a complete disk has an absent block: its maps are damaged")
    return part
