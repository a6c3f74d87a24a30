"""What is written at a source that is a relocator, epoch after epoch.

    copy ahead, what is written often last
    round:  a new epoch at the source -> what became dirty in the ended one is dropped here,
            and noted: the copy is of the new epoch -> fetched again

Nobody waits for an epoch to begin at the source. The source tells what became dirty in the epoch
that the copy is of, again if its answer was lost, and once more with its seal: so a round may be
interrupted anywhere, by a switch too, and costs no more than its blocks. An older source doesn't:
it is asked only when an operator says so, and an answer that is lost makes everything stale.
"""

import threading

from relocator.copying import heat
from relocator.errors import StateError, UpstreamError
from relocator.running.parts import Parts, Transfer
from relocator.running.rounds import check_standby
from relocator.source.answer import Answer, base_of, check_id, stale
from relocator.source.remote import Source
from relocator.store.meta import Base
from relocator.store.store import Store


def begin_anew(store: Store, transfer: Transfer, answer: Answer) -> None:
    """Who gives this `answer`, and keeps no store, is the source from now on, and nobody else.

    What is here is stale, and to be dropped: until then the base says that it is not known. Over
    connections that were made before another disk may be read: nothing is asked of them any more.

    Raises:
        OtherDiskError: as of `check_id`.
        StoreError: that can't be noted; nothing has changed.
    """
    check_id(store.meta, answer)
    store.update(base=Base(answer["id"], 0))
    transfer.renew()


class Epochs:
    """What `source` says of its epochs. `lock` orders what is done about it with a switch."""

    def __init__(
        self, parts: Parts, source: Source, transfer: Transfer, lock: threading.Lock
    ) -> None:
        self._parts = parts
        self._store = parts.store
        self._source = Source(source.endpoint)  # its own: the other keeps a connection for the seal
        self._transfer = transfer
        self._lock = lock
        self._tells_again: bool | None = None
        self.stale_blocks = 0

    def begin(self) -> None:
        """Ask which places are written often, to copy them last; it is only order."""
        try:
            answer = self._source.call("identify")
            self._tells_again = "digests" in answer.fields  # it came a little later than epoch/N
            written = heat.unpack(self._source.export("write-heat", heat.MOST_PACKED_BYTES))
            shift = heat.shift_of(answer["group_bytes"], self._store.geometry.size_bytes)
        except UpstreamError:
            return
        self._parts.plan.add(written=written, heat_shift=shift)

    def look(self) -> None:
        """Count what is dirty at the source in the epoch that the copy is of, and here."""
        answer = self._source.call("identify")
        present = self._store.present
        self.stale_blocks = sum(present.count(*run) for run in stale(self._store, answer))

    @property
    def absent_blocks(self) -> int:
        """How many blocks the copy ahead still has to bring."""
        return self._store.geometry.total_blocks - self._store.present_blocks

    @property
    def due(self) -> bool:
        """Whether all is here that can be had, and the source gives an answer again."""
        all_here = self.absent_blocks == 0 or self._transfer.hydration.background.left_to_refused
        return all_here and self._asks_again()

    def _asks_again(self) -> bool:
        """Whether the source gives an answer again that was lost."""
        if self._tells_again is None:
            self._tells_again = "digests" in self._source.call("identify").fields
        return self._tells_again

    @property
    def begun_anew(self) -> bool:
        """Whether the source keeps no store, and was started again, as far as can be told."""
        base = self._store.meta.base
        if base is None or self._store.meta.origin_kept or not self._transfer.upstream.refusal:
            return False
        answer = self._source.identify()
        return answer is not None and not answer.kept and answer["id"] != base.id

    def drop(self) -> int:
        """Begin an epoch, and drop what became dirty in the one before, to be copied again."""
        base = self._store.meta.base
        if base is None:
            raise StateError("'refresh' needs a source that is a relocator")
        if self._asks_again():
            answer = self._source.call(f"epoch/{base.epoch}")
            with self._lock:
                return self._apply(base, answer)
        with self._lock:  # its answer can't be had twice: a switch has to wait for it
            check_standby(self._parts)
            return self._apply(base, self._source.call("epoch"))

    def _apply(self, base: Base, answer: Answer) -> int:
        """Drop what is stale, and note the epoch that the copy is of; with the lock."""
        check_standby(self._parts)
        self.stale_blocks = 0
        if base_of(answer) == base:
            return 0
        if answer["id"] != base.id:
            begin_anew(self._store, self._transfer, answer)
        self._transfer.hydration.disown_fetches()
        dropped = self._store.drop(stale(self._store, answer, "ended", began=1))
        self._store.update(base=base_of(answer))
        return dropped
