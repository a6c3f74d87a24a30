"""The seal, as the destination asks for it, and what comes with it.

Long before the switch a connection is made ready: the request then takes one round trip. It says
how many bytes of what was written last may come with the answer (see rest.py): about as many as
the link brings in that round trip, so that a disk that was kept in step is complete as soon as it
is taken over.

    answer -> stale blocks dropped -> those that come are claimed -> they arrive, one by one

A claim keeps everybody else from fetching these blocks, and a guest's write takes its blocks out of
it, as with any fetch (see copying/hydration.py). What does not arrive is absent and is fetched like
the others. Asked again, after an answer that was lost, the source says the same: it stands still.

A source of an older version knows nothing of this, and is asked for its seal alone.
"""

import errno
import threading
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from relocator.copying import hints
from relocator.copying.claims import Claim
from relocator.errors import RelocatorError, StateError, UpstreamError
from relocator.running.insisting import insist
from relocator.running.parts import Parts, Transfer
from relocator.running.rest import MOST_REST_BYTES
from relocator.source.remote import Answer, Source, base_of, stale
from relocator.store.store import Runs

LEAST_BYTES = 64 << 10
MOST_BYTES = 16 << 20
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
        self._ready = "", 0  # what the connection that is ready asks for, and how much that brings
        self._answer: Answer | None = None
        self._thread: threading.Thread | None = None
        #: bytes that have come with the seal
        self.brought_bytes = 0
        self.dropped_blocks = 0
        #: what an operator should know: of a relocator there is nothing that it doesn't say itself
        self.notes: tuple[str, ...] = ()

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

    def prepare(self, token: str) -> None:
        """Have a connection ready for the seal `token`, with what may come as the link is now.

        Raises:
            UpstreamError: the source can't be reached.
        """
        most = self._most_bytes
        verb, brings = self._ready
        if token in verb and brings * 3 <= most * 4 <= brings * 5:
            return
        for verb in _verbs(token, most):
            try:
                self._source.prepare(verb)
            except UpstreamError as error:
                refused = error
            else:
                self._ready = verb, most
                return
        raise refused

    def unprepare(self) -> None:
        """The seal is not asked for any more."""
        self._ready = "", 0
        self._source.unprepare()

    def ask(self, token: str, pause: Callable[[float], None]) -> None:
        """Have the source sealed; errors as of `insist`."""
        why = "the source can't be sealed yet"
        self._answer = insist(self._parts, lambda: self._ask(token), pause, why)

    def _ask(self, token: str) -> Answer:
        verb, most = self._ready
        if token not in verb:
            most = self._most_bytes
            verb, *_ = _verbs(token, most)
        try:
            return self._source.call(verb, most if verb.count("/") > 1 else 0)
        except UpstreamError as error:
            plain = _verbs(token, 0)[0]
            if verb == plain or error.errno == errno.ETIMEDOUT:
                raise
            return self._source.call(plain)  # unless it can't be reached, it is of an older version

    def settle(self) -> dict[str, Any]:
        """Drop what is older than the seal, and let come what comes with it.

        Returns what is then known of the source, as changes of `Meta`.
        """
        answer = self._answer
        assert answer is not None
        self.join()  # what came with an earlier seal, since withdrawn
        self._transfer.hydration.disown_fetches()
        self.dropped_blocks = self._store.drop(stale(self._store, answer))
        arguments = answer, self._claim(answer)
        self._thread = threading.Thread(
            target=self._bring, args=arguments, name="rest", daemon=True
        )
        self._thread.start()
        hints.tell_recent(answer, self._parts.plan)
        return {
            "base": base_of(answer),
            "origin_id": answer["id"],
            "origin_samples": None,
            "origin_seal": answer["seal"],
            "untold": True,
        }

    def _claim(self, answer: Answer) -> list[tuple[Claim, int]]:
        """Claim the absent blocks of what comes with the answer; where in it each claim begins."""
        if not answer.rest_bytes:
            return []
        geometry, block, at = self._store.geometry, self._store.geometry.block_bytes, 0
        theirs = answer.geometry(geometry.size_bytes)
        ranges: Runs = []
        origins: list[int] = []  # of each range: where the disk's first byte would be
        for run in answer.map("rest_blocks", theirs.total_blocks):
            extent = theirs.extent(*run)
            _, first, end = geometry.split(*extent)
            if first < end:
                ranges.append((first, end))
                origins.append(at - extent.offset)
            at += extent.length
        most = max(1, _STEP_BYTES // block)
        firsts = [first for first, _ in ranges]
        return [
            (claim, origins[bisect_right(firsts, claim.first) - 1] + claim.first * block)
            for claim in self._transfer.hydration.expect(ranges, most)
        ]

    def _bring(self, answer: Answer, claims: list[tuple[Claim, int]]) -> None:
        """Store what comes (a thread)."""

        def wanted() -> None:
            if self._parts.lifecycle.stopping.is_set() or self._answer is not answer:
                raise StateError("what comes with the seal is no longer wanted")

        failure: RelocatorError | None = None
        for claim, at in claims:
            data = b""
            length = self._store.geometry.extent(claim.first, claim.end).length
            if failure is None:
                try:
                    data = answer.rest(at, length, wanted)
                except RelocatorError as error:
                    failure = error
                else:
                    self.brought_bytes += length
            self._transfer.hydration.arrive(claim, data, failure)
        answer.end(wanted)  # a connection that stayed would keep the source's server from ending

    def join(self) -> None:
        """Wait until nothing is stored any more: once stopping, or for another answer."""
        if self._thread is not None:
            self._thread.join()


def _verbs(token: str, most_bytes: int) -> list[str]:
    """What to ask for, the best first."""
    plain = f"seal/{token}"
    return [f"{plain}/{most_bytes}", plain] if most_bytes else [plain]
