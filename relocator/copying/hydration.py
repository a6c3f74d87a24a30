"""The one path by which a block becomes present, for the guest and for the copier.

A block is ABSENT, claimed, or PRESENT. A claim is a range of absent blocks that its owner is about
to make present: with *content of the source* (a fetch, a hole, bytes known to be equal), or by a
*write* of whole blocks by the guest. Rules:

1. A block has at most one owner, so it is fetched at most once and never while it is written.
2. The guest's write wins: it takes blocks away from a fetch whose data is still on its way, and the
   late arrival is dropped for them. A write waits only for a fetch that is *storing*: locally.
3. Data first, then the present bit, then the claim goes and the waiters wake. A waiter looks again
   from the start: what it waited for may have changed hands.
4. A guest's read takes blocks away from a background fetch that stays out for `STUCK_S`, or sooner
   where the source is silent: what else was asked for may be what it can't read.
5. Content of the source is of the instant at which the source was asked. Once fetches are disowned,
   nothing that it was asked before becomes present any more.

`store.lock` guards the claims and the counts together with the bitmaps. It is never held across
I/O, nor while waiting.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

from relocator.copying.background import Background
from relocator.copying.claims import Claim, Claims, Range
from relocator.errors import NotKeptError, RelocatorError, StoreError, UpstreamError
from relocator.source.upstream import Request, Upstream
from relocator.store import skipped
from relocator.store.store import Store


class Released(Protocol):
    """Told of a fetch, on another thread."""

    def __call__(self, error: RelocatorError | None) -> None:
        """It is over: it has come (None), or failed."""

    def stuck(self) -> None:
        """The source leaves it unanswered for long; told now and then."""


_ZEROS = bytes(1 << 20)
#: a run of zeros is made present in steps: so much at a time, more once it was seen to be punched
_WRITE_STEP_BYTES, _PUNCH_STEP_BYTES = 16 << 20, 1 << 30
_MOST_RUNS = 4096  # claimed at once
LOOK_EVERY_S = 0.25
STUCK_S = 10.0


class Hydration:
    """Makes blocks of `store` present from `upstream`.

    `on_demand` is given the length in bytes of every fetch that the guest waits for, and what it
    returns is called at the fetch's end. `on_complete` is called whenever the last absent block has
    become present. Both are called on any thread, without a lock.
    """

    def __init__(
        self,
        store: Store,
        upstream: Upstream,
        *,
        on_demand: Callable[[int], Released],
        on_complete: Callable[[], None],
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._on_demand = on_demand
        self._on_complete = on_complete
        self._claims = Claims(store.present)
        self.background = Background(store, self._claims)
        self.on_demand_bytes = 0
        self.background_bytes = 0
        #: how often what the source had been asked was disowned
        self.disowned = 0
        self.hole_bytes = 0
        self._zero_step_bytes = _WRITE_STEP_BYTES
        self.skipped_bytes = 0
        self.seeded_bytes = 0

    def hydrate(self, first: int, end: int, meanwhile: Callable[[], None] | None = None) -> None:
        """Return once every block of `first..end` is present.

        `meanwhile` is called once, when all that is needed is on its way.

        Raises:
            UpstreamError: the source failed, or was lost for too long.
            NotKeptError: the data came but the store could not keep it.
        """
        while True:
            with self._store.lock:
                if self._store.present.all(first, end):
                    return
                foreign = self._claims.owners(first, end)
                mine = [Claim(*run, of_source=True) for run in self._claims.unowned(first, end)]
                self._claims.add(mine)
            for claim in mine:
                self.send(claim, self._on_demand(self._length(claim)))
            if meanwhile is not None:
                meanwhile()
                meanwhile = None
            for claim in mine:
                while not claim.wait(LOOK_EVERY_S):
                    if self._present(first, end):
                        return  # a write has brought it; the source may be silent for long
            for claim in foreign:
                self._await(claim, first, end)
            errors = [claim.error for claim in mine if claim.error is not None]
            errors += [claim.error for claim in foreign if isinstance(claim.error, NotKeptError)]
            if errors and not self._present(first, end):  # a write may have come to the rescue
                raise errors[0]

    def _length(self, claim: Claim) -> int:
        """A claim's bytes."""
        return self._store.geometry.extent(claim.first, claim.end).length

    def _present(self, first: int, end: int) -> bool:
        with self._store.lock:
            return self._store.present.all(first, end)

    def _await(self, claim: Claim, first: int, end: int) -> None:
        """Wait for somebody else's claim, but not for a source that is lost for too long.

        Nor for one that is stuck with what it has besides `first..end`, which is given up then.
        """
        lost_since_s: float | None = None
        began_s = time.monotonic()
        while not (claim.wait(LOOK_EVERY_S) or self._present(first, end)):
            now_s = time.monotonic()
            if claim.storing or self._upstream.connected:
                lost_since_s = None
                if self._stays_out(claim, now_s - began_s) and self._take(claim, first, end):
                    return
            elif lost_since_s is None:
                lost_since_s = now_s
            elif now_s - lost_since_s > self._upstream.retry_timeout_s:
                raise UpstreamError(f"the source {self._upstream.uri} can't be reached")

    def _stays_out(self, claim: Claim, waited_s: float) -> bool:
        return claim.out or waited_s > STUCK_S or self._upstream.is_background_silent

    def _take(self, claim: Claim, first: int, end: int) -> bool:
        """Take `first..end` away from a background fetch; whether that was possible."""
        with self._store.lock:
            if claim.storing or not claim.background:
                return False
            return self._claims.give(claim, first, end)  # unless it has failed just now

    def expect(self, ranges: Iterable[Range], most_blocks: int) -> list[Claim]:
        """Claim what is absent and unowned of disjoint ranges, `most_blocks` a claim.

        It comes by another way: the caller must let each claim `arrive`.
        """
        with self._store.lock:
            runs = [run for blocks in ranges for run in self._claims.unowned(*blocks)]
            claims = [
                Claim(at, min(at + most_blocks, end), of_source=True, background=True)
                for first, end in runs
                for at in range(first, end, most_blocks)
            ]
            self._claims.add(claims)
            return claims

    def disown_fetches(self) -> None:
        """Whatever the source was asked before is dropped when its answer comes.

        Returns once none is storing: from then on no block becomes present that isn't claimed anew.
        """
        with self._store.lock:
            self.disowned += 1
            fetches = [claim for claim in self._claims if claim.of_source]
            storing = [claim for claim in fetches if claim.storing]
            for claim in fetches:
                if not claim.storing:
                    claim.lost.append((claim.first, claim.end))
        for claim in storing:
            claim.wait()

    def skip(self, free: list[Range], asked: int, stopped: Callable[[], bool]) -> None:
        """Make blocks present as zeros that are free at the source, whatever it has there.

        The store says first which they are. Ends early once it is `stopped`. `asked` and errors as
        for `fill_hole`.
        """
        if stopped():
            return
        skipped.note(self._store, free)
        for first, end in free:
            if stopped() or not self.fill_hole(first, end, asked, free=True):
                return

    def fill_hole(self, first: int, end: int, asked: int, *, free: bool = False) -> bool:
        """Make the absent, unowned blocks of `first..end` present as zeros.

        `asked` is what `disowned` was before the source was asked; once it has changed, nothing
        more is done. Returns whether it has not. `free`: they are no holes of the source, and
        counted apart. However long the run is, a guest waits for a step at most.

        Raises:
            StoreError: the store refused; nothing of this step is marked.
        """
        block = self._store.geometry.block_bytes
        while first < end:
            stop = min(end, first + max(1, self._zero_step_bytes // block))
            if (claims := self._claim_known(first, stop, asked)) is None:
                return False
            self._fill_zeros(claims, free)
            first = claims[-1].end if len(claims) == _MOST_RUNS else stop
        return True

    def _fill_zeros(self, claims: list[Claim], free: bool) -> None:
        """Make claims present as zeros, and note how large a step may be."""
        length = sum(self._length(claim) for claim in claims)
        with self._storing(claims):
            for claim in claims:
                extent = self._store.geometry.extent(claim.first, claim.end)
                is_punched = self._store.image.zero(*extent, punch=True)
                self._zero_step_bytes = _PUNCH_STEP_BYTES if is_punched else _WRITE_STEP_BYTES
            with self._store.lock:
                if free:
                    self.skipped_bytes += length
                else:
                    self.hole_bytes += length

    def fill(self, first: int, end: int, asked: int, data: memoryview) -> bool:
        """Make the absent, unowned blocks of `first..end` present with `data`, all their bytes.

        The source is known to hold the same; `asked`, the result and errors as for `fill_hole`.
        """
        if (claims := self._claim_known(first, end, asked)) is None:
            return False
        with self._storing(claims):
            for claim in claims:
                self._keep(first, claim.first, claim.end, data)
            with self._store.lock:
                self.seeded_bytes += sum(self._length(claim) for claim in claims)
        return True

    def _claim_known(self, first: int, end: int, asked: int) -> list[Claim] | None:
        """Claim blocks whose content is known, the first runs of many; None if that is disowned."""
        with self._store.lock:
            if asked != self.disowned:
                return None
            ranges = islice(self.background.wanted_locked(first, end), _MOST_RUNS)
            claims = [Claim(*blocks, of_source=True, storing=True) for blocks in ranges]
            self._claims.add(claims)
            return claims

    @contextmanager
    def _storing(self, claims: list[Claim]) -> Iterator[None]:
        """The body stores what the claims are for; they are present afterwards."""
        try:
            yield
        except OSError as error:
            self._release(claims, present=False)
            raise StoreError(f"the store can't keep data: {error}", error.errno or 5) from error
        self._release(claims, present=True)

    @contextmanager
    def writing(self, first: int, end: int) -> Iterator[None]:
        """Own the absent blocks of `first..end` while the guest writes all of them.

        They are present afterwards, or as before if the body raises.
        """
        claims = self._claim_for_write(first, end)
        try:
            yield
        except BaseException:
            self._release(claims, present=False)
            raise
        self._release(claims, present=True)

    def _claim_for_write(self, first: int, end: int) -> list[Claim]:
        while True:
            with self._store.lock:
                rivals = self._claims.owners(first, end)
                busy = next((claim for claim in rivals if claim.storing), None)
                if busy is None:
                    absent = list(self._store.present.clear_runs(first, end))
                    for claim in rivals:
                        part = max(first, claim.first), min(end, claim.end)
                        claim.lost += self._store.present.clear_runs(*part)
                    claims = [Claim(*blocks, storing=True) for blocks in absent]
                    self._claims.add(claims)
                    return claims
            busy.wait()

    def read_through(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from the source's bytes at `offset`, keeping nothing.

        Raises:
            UpstreamError: the source failed, or was lost for too long.
        """
        self._upstream.read_into(buffer, offset)

    def send(self, claim: Claim, released: Released) -> None:
        """Fetch a claim's blocks; `released` is called once it is over, on another thread."""

        def arrived(request: Request) -> None:
            if request.error is not None or self.background.refusals:
                self.background.note(
                    claim, request.error
                )  # before it goes, or it would be asked again
            self.arrive(claim, request.data, request.error)
            released(claim.error)

        def stuck() -> None:
            claim.out = True  # whoever waits for all that can be had doesn't wait for this
            released.stuck()

        extent = self._store.geometry.extent(claim.first, claim.end)
        self._upstream.fetch(
            extent.offset,
            extent.length,
            arrived,
            background=claim.background,
            stuck=stuck,
        )

    def arrive(
        self, claim: Claim, data: bytes | bytearray, failure: RelocatorError | None = None
    ) -> None:
        """Store a claim's data where the guest hasn't written meanwhile; then publish it.

        `failure`: it doesn't come.
        """
        claim.error = failure
        if claim.error is None:
            with self._store.lock:
                claim.storing = True
                owned = claim.owned()
                if claim.background:
                    self.background_bytes += self._length(claim)
                else:
                    self.on_demand_bytes += self._length(claim)
            try:
                for first, end in owned:
                    self._keep(claim.first, first, end, memoryview(data))
            except OSError as error:
                claim.error = NotKeptError(f"the store can't keep data: {error}", error.errno or 5)
        self._release([claim], present=claim.error is None)

    def _keep(self, start: int, first: int, end: int, data: memoryview) -> None:
        """Store the blocks `first..end` of `data`, which begins with the block `start`."""
        extent = self._store.geometry.extent(first, end)
        at = (first - start) * self._store.geometry.block_bytes
        piece = data[at : at + extent.length]
        if piece == memoryview(_ZEROS)[: len(piece)]:
            self._store.image.zero(extent.offset, extent.length, punch=True)
        else:
            self._store.image.write(piece, extent.offset)

    def _release(self, claims: list[Claim], *, present: bool) -> None:
        """Give claims up, marking what they still own if `present`; wake who waits."""
        with self._store.lock:
            for claim in claims:
                if present:
                    for first, end in claim.owned():
                        self._store.mark_present_locked(first, end)
            self._claims.remove(claims)
            complete = self._store.all_present
        for claim in claims:
            claim.release()
        if complete:
            self._on_complete()
