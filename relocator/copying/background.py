"""What the background copy is to fetch: what is absent, nobody has, and is not left alone for now.

Left alone is what others have set aside, and what the source has failed to read: that comes last
(see refused.py). When nothing else is left, rounds of a copy ahead go on without it.

`store.lock` guards what it knows of claims and refusals; who reads `aside` or `refusals`
without it may see what was a moment before.
"""

import time
from collections.abc import Iterator

from relocator.copying.claims import Claim, Claims, Range
from relocator.copying.refused import Refused
from relocator.errors import RefusedError, RelocatorError
from relocator.store.bitmap import Bitmap
from relocator.store.store import Store


class Background:
    """Picks from `store`'s absent blocks; who has which of them is in `claims`."""

    def __init__(self, store: Store, claims: Claims) -> None:
        self._store = store
        self._claims = claims
        self._refused = Refused(store.geometry.total_blocks)
        #: blocks that are set aside
        self.aside: Bitmap | None = None
        #: changes whenever what the source has failed to read does; 0 while that is nothing, ever
        self.refusals = 0

    def claim(self, first: int, end: int, most_blocks: int) -> Claim | None:
        """Claim the first run of `first..end` that is to be fetched, at most `most_blocks` of it.

        Returns None if there is none. The caller must `send` the claim.
        """
        with self._store.lock:
            run = next(self._fetchable_locked(first, end), None)
            if run is None:
                return None
            stop = min(run[1], run[0] + most_blocks)
            claim = Claim(run[0], stop, of_source=True, background=True)
            self._claims.add([claim])
            return claim

    def claim_again(self) -> Claim | None:
        """Claim something that the source failed to read and is to be asked for again now.

        Returns None if there is nothing. The caller must `send` the claim.
        """
        with self._store.lock:
            while (due := self._refused.due(time.monotonic())) is not None:
                if (run := next(self.wanted_locked(*due), None)) is not None:
                    claim = Claim(*run, of_source=True, background=True)
                    claim.again = True
                    self._refused.asked(*run)
                    self._claims.add([claim])
                    return claim
            return None

    @property
    def again_due(self) -> bool:
        """Whether there may be something to `claim_again`."""
        with self._store.lock:
            return self._refused.is_due(time.monotonic())

    @property
    def left_to_refused(self) -> bool:
        """Whether all is stored but what has failed once, or stays out; False if nothing did."""
        with self._store.lock:
            return self._is_left_locked()

    @property
    def left_to_unreadable(self) -> bool:
        """Whether all is stored but blocks each of which has failed by itself."""
        with self._store.lock:
            if not (self._refused.by_block and self._is_left_locked()):
                return False
            return all(
                claim.end - claim.first == 1 and self._refused.has_failed(claim.first)
                for claim in self._claims
                if claim.again and not claim.out
                if not self._store.present.all(claim.first, claim.end)  # a guest's fetch was faster
            )

    def _is_left_locked(self) -> bool:
        claims = [claim for claim in self._claims if claim.of_source]
        if not self.refusals and not any(claim.out for claim in claims):
            return False
        total = self._store.geometry.total_blocks
        if not all(claim.again or claim.out for claim in claims) or self.sets_aside(0, total):
            return False
        return next(self._fetchable_locked(0, total), None) is None

    @property
    def refusal(self) -> str | None:
        """What the source fails to read, in words; None if it is nothing."""
        with self._store.lock:
            count, first = self._refused.absent(self._store.present)
        if not count:
            return None
        block_bytes = self._store.geometry.block_bytes
        length, at = count * block_bytes, first * block_bytes
        return f"the source can't read {length} bytes of the disk, the first of them at {at}"

    def note(self, claim: Claim, error: RelocatorError | None) -> None:
        """A fetch has come, was refused, or failed for another reason, which says nothing of it."""
        if isinstance(error, RefusedError):
            if claim.background:
                with self._store.lock:
                    self._refused.note(claim.first, claim.end, time.monotonic())
                    self.refusals += 1
        elif error is None or claim.background:
            with self._store.lock:
                self.refusals += self._refused.forget(claim.first, claim.end)

    def sets_aside(self, first: int, end: int) -> bool:
        """Whether all of `first..end` is set aside."""
        return self.aside is not None and self.aside.all(first, end)

    def wanted_locked(self, first: int, end: int) -> Iterator[Range]:
        """Absent blocks of `first..end` that nobody has, without what is set aside."""
        if (aside := self.aside) is None:
            yield from self._claims.unowned(first, end)
            return
        for run in self._claims.unowned(first, end):
            yield from aside.clear_runs(*run)

    def _fetchable_locked(self, first: int, end: int) -> Iterator[Range]:
        """The same, without what the source has failed to read."""
        if (refused := self._refused.blocks) is None:
            yield from self.wanted_locked(first, end)
            return
        for run in self.wanted_locked(first, end):
            yield from refused.clear_runs(*run)
