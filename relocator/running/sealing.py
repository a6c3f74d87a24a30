"""The seal, as the destination asks for it, and what comes with it.

Long before the switch connections are made ready: the request then takes one round trip, and so
does the word that follows it, `moved`, which lets the source go. The request says how many bytes of
what was written last may come with the answer (see rest.py): about as many as the link brings in
that round trip, so that a disk that was kept in step is complete as soon as it is taken over. Some
connections are made ready for it, at least as many as the copy has, and each brings a part: one
alone would begin with some 14 KB a round trip.

    answer -> stale blocks dropped -> those that come are claimed -> they arrive, part by part

A claim keeps everybody else from fetching these blocks, and a guest's write takes its blocks out of
it, as with any fetch (see copying/hydration.py). What does not arrive is absent and is fetched like
the others. Asked again, after an answer that was lost, the source says the same: it stands still.

A source of an older version knows nothing of this, and is asked for its seal alone.

Whoever is asked is sealed. So who answers is looked at before: when the connections are made ready,
or, where none is, on the way.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Any

from relocator.copying import hints
from relocator.copying.claims import Claim
from relocator.errors import OtherDiskError, RelocatorError, StateError, UpstreamError
from relocator.jobs import start
from relocator.running.coming import Coming
from relocator.running.epochs import begin_anew
from relocator.running.insisting import insist
from relocator.running.parts import Parts, Transfer
from relocator.running.rest import MOST_REST_BYTES
from relocator.source.answer import Answer, base_of, check_id, stale
from relocator.source.remote import Source
from relocator.store.store import Runs

#: what comes with the seal comes in so many parts at least
LEAST_PARTS = 8
_OVER_TCP = ("nbd", "nbds")
LEAST_BYTES = 64 << 10
MOST_BYTES = 16 << 20
#: claims, and where in what comes each begins
Claims = list[tuple[Claim, int]]
#: as long as the link was not measured
UNMEASURED_BYTES = 256 << 10
#: what has come is stored in pieces of at most so many bytes
_STEP_BYTES = 128 << 10


class Sealing:
    """Gets the seal of `source`, and what it brings."""

    def __init__(self, parts: Parts, source: Source, transfer: Transfer) -> None:
        self._parts = parts
        self._store = parts.store
        self._source = source
        self._transfer = transfer
        #: what is ready to be asked, how much may come of it, how many parts were wanted
        self._ready: tuple[list[str], int, int] = [], 0, 0
        self._known = self._base_id
        self._answer: Answer | None = None
        self._thread: threading.Thread | None = None
        self._counting = threading.Lock()
        #: bytes that have come with the seal
        self.brought_bytes = 0
        self.dropped_blocks = 0
        #: what an operator should know: of a relocator there is nothing that it doesn't say itself
        self.notes: tuple[str, ...] = ()

    @property
    def _base_id(self) -> str | None:
        return None if self._store.meta.base is None else self._store.meta.base.id

    @property
    def _is_doubtful(self) -> bool:
        """Whether somebody else has answered, now or before."""
        return self._transfer.upstream.refusal is not None or self._base_id != self._known

    @property
    def _most_bytes(self) -> int:
        """How much may come with the seal as things are now; 0 for nothing."""
        wanted = self._parts.settings.seal_brings_bytes
        if wanted is None:
            if not self._store.present_blocks:
                return 0  # nothing was copied ahead: nothing is to be kept in step
            wanted = self._transfer.pacer.round_trip_bytes or UNMEASURED_BYTES
            wanted = min(max(wanted, LEAST_BYTES), MOST_BYTES)
        return min(wanted, MOST_REST_BYTES)

    @property
    def _wanted_parts(self) -> int:
        """A Unix socket needs no more than the copy has, and ssh is a process for each."""
        lanes = self._transfer.upstream.lanes
        return max(LEAST_PARTS, lanes) if self._source.endpoint.scheme in _OVER_TCP else lanes

    def prepare(self, token: str) -> None:
        """Have a connection ready for the seal `token`, with what may come as the link is now.

        Raises:
            UpstreamError: the source can't be reached, or has become another disk.
        """
        if self._store.meta.takeover is not None:
            return  # it was withdrawn: nobody asks for this seal any more
        if self._is_doubtful:
            return  # whoever answers now is not to be sealed, or another may be there at the switch
        most, parts = self._most_bytes, self._wanted_parts
        ready, brings, of = self._ready
        is_enough = brings * 3 <= most * 4 <= brings * 5 and (parts == of or not most)
        if ready and token in ready[0] and is_enough:
            is_lost = not self._source.is_ready(*ready, f"moved/{token}")
            if not (is_lost and self._transfer.upstream.connected):
                return  # what was lost is made ready again once the source is there again
        for verbs in _verbs(token, most, parts):
            try:
                self._source.prepare(*verbs, f"moved/{token}", look=self._look_ahead)
            except OtherDiskError:
                raise
            except UpstreamError as error:
                refused = error
            else:
                self._ready = verbs, most, parts
                return
        raise refused

    def unprepare(self) -> None:
        """The seal is not asked for any more."""
        self._ready = [], 0, 0
        self._source.unprepare()

    def ask(self, token: str, pause: Callable[[float], None]) -> None:
        """Have the source sealed; errors as of `insist`."""
        why = "the source can't be sealed yet"
        self._answer = insist(self._parts, lambda: self._ask(token), pause, why)

    def _look(self, answer: Answer) -> None:
        """Refuse another disk, before it is asked for a seal; errors as of `check_id`."""
        check_id(self._store.meta, answer)

    def _look_ahead(self, answer: Answer) -> None:
        """As `_look`; one that keeps no store is made ready only as whom the copy is of."""
        self._look(answer)
        if answer["id"] != self._base_id:
            self._transfer.renew()  # who is read may not be there any more either
            raise OtherDiskError("the source was started again without a store")

    def _ask(self, token: str) -> Answer:
        if self._is_doubtful:
            self.unprepare()  # whom these reach is looked at anew
        try:
            return self._call(token)
        except OtherDiskError as error:  # it has answered: to ask again would say the same
            raise StateError(str(error)) from error

    def _call(self, token: str) -> Answer:
        verbs, most, _ = self._ready
        if not verbs or token not in verbs[0]:
            most, verbs = self._most_bytes, []
        ((whole,), *_), ((plain,),) = _verbs(token, most, 1), _verbs(token, 0, 1)
        if verbs == [plain]:
            whole, most = plain, 0
        try:
            return self._source.call(whole, most, verbs, self._look)
        except OtherDiskError:
            raise
        except UpstreamError as error:
            if whole == plain or error.is_away:
                raise
            # unless it can't be reached, it is of an older version
            return self._source.call(plain, look=self._look)

    def settle(self) -> dict[str, Any]:
        """Drop what is older than the seal, and let come what comes with it.

        Returns what is then known of the source, as changes of `Meta`.
        """
        answer = self._answer
        assert answer is not None
        self.join()  # what came with an earlier seal, since withdrawn
        if answer["id"] != self._base_id:
            begin_anew(self._store, self._transfer, answer)
        self._transfer.hydration.disown_fetches()
        self.dropped_blocks = self._store.drop(stale(self._store, answer))
        coming, claims = self._claim(answer)
        self._thread = start("rest", self._bring, coming, claims)
        hints.tell_recent(answer, self._parts.plan)
        return {
            "base": base_of(answer),
            "origin_id": answer["id"],
            "origin_kept": answer.kept,
            "origin_samples": None,
            "origin_seal": answer["seal"],
            "untold": True,
        }

    def _claim(self, answer: Answer) -> tuple[Coming, Claims]:
        """Claim the absent blocks of what comes with the answer; where in it each claim begins."""
        geometry, block = self._store.geometry, self._store.geometry.block_bytes
        theirs = answer.geometry(geometry.size_bytes)
        blocks = answer.map("rest_blocks", theirs.total_blocks) if answer.rest_bytes else []
        extents = [theirs.extent(*run) for run in blocks]
        coming = Coming(answer, extents, theirs.block_bytes, partial(self._check_wanted, answer))
        ranges: Runs = []
        origins: list[int] = []  # of each range: where the disk's first byte would be
        for piece, at in coming.pieces(block):
            _, first, end = geometry.split(*piece)
            if first < end:
                ranges.append((first, end))
                origins.append(at - piece.offset)
        most = max(1, _STEP_BYTES // block)
        firsts = [first for first, _ in ranges]
        return coming, [
            (claim, origins[bisect_right(firsts, claim.first) - 1] + claim.first * block)
            for claim in self._transfer.hydration.expect(ranges, most)
        ]

    def _check_wanted(self, answer: Answer) -> None:
        if self._parts.lifecycle.stopping.is_set() or self._answer is not answer:
            raise StateError("what comes with the seal is no longer wanted")

    def _bring(self, coming: Coming, claims: Claims) -> None:
        """Store what comes (a thread, which has one more for each further part)."""
        of_part: list[Claims] = [[] for _ in range(coming.parts)]
        across: Claims = []
        for claim, at in claims:
            part = coming.part_at(at)
            is_within = coming.part_at(at + self._length(claim) - 1) == part
            (of_part[part] if is_within else across).append((claim, at))
        threads = [start("rest", self._store_part, coming, some) for some in of_part[1:] if some]
        self._store_part(coming, of_part[0])
        for thread in threads:
            thread.join()
        self._store_part(coming, across)
        coming.end()  # a connection that stayed would keep the source's server from ending

    def _store_part(self, coming: Coming, claims: Claims) -> None:
        failure: RelocatorError | None = None
        for claim, at in claims:
            data = b""
            if failure is None:
                try:
                    data = coming.read(at, self._length(claim))
                except RelocatorError as error:
                    failure = error
                else:
                    with self._counting:
                        self.brought_bytes += len(data)
            self._transfer.hydration.arrive(claim, data, failure)

    def _length(self, claim: Claim) -> int:
        return self._store.geometry.extent(claim.first, claim.end).length

    def join(self) -> None:
        """Wait until nothing is stored any more: once stopping, or for another answer."""
        if self._thread is not None:
            self._thread.join()


def _verbs(token: str, most_bytes: int, parts: int) -> list[list[str]]:
    """What to ask for, each over a connection of its own; the best first."""
    plain = f"seal/{token}"
    if not most_bytes:
        return [[plain]]
    whole = f"{plain}/{most_bytes}"
    several = [[f"{whole}/{part}/{parts}" for part in range(parts)]] if parts > 1 else []
    return [*several, [whole], [plain]]
