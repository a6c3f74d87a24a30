"""How authority over a disk moves from site to site.

At the source: `epoch` begins the dirty map anew, `seal` drains the writes in progress, makes all
durable and refuses further ones; its token names the content that was frozen. At the destination: a
copy notes what it was taken from (its *base*: id, epoch, seal), and `activate` seals the source,
drops what was fetched too early, and only then lets writes pass.

    standby:  epoch e at the source; copy ahead (pre-seed); reads pass through
    activate: seal -> dirty since e -> drop those blocks -> durable -> active
    return:   a sealed disk whose seal is its successor's base takes back only what diverged there

The order in `activate` matters: the source stands still before the first stale block is dropped,
and whatever was asked of it before that is disowned, so nothing older than the seal can arrive
afterwards.

`_lock` lets one activation run at a time; it is held across I/O, and guards nothing else. State
changes are the lifecycle's.
"""

import threading
import traceback
from typing import Any

from relocator.copying import hints
from relocator.errors import RelocatorError, StateError, UpstreamError
from relocator.running.parts import HANDOVER, Parts, Transfer
from relocator.running.states import State
from relocator.source.connection import backoff
from relocator.source.identity import samples_at
from relocator.source.remote import Answer, Source, base_of
from relocator.source.verify import compare
from relocator.store.store import Store

#: at most so long until the source is told again, and asked again what the order may rest on
AGAIN_S = 30.0


class Handover:
    """The verbs that move authority over one disk."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._lifecycle = parts.lifecycle
        self._parts = parts
        self._lock = threading.Lock()
        endpoint = parts.settings.endpoint
        self._source = None if endpoint is None else Source(endpoint)

    @property
    def source_is_ours(self) -> bool:
        """Whether the source was found to be a relocator when the copy began."""
        return self._store.meta.base is not None

    def begin(self) -> None:
        """Make ready, beside the requests, what the handover needs."""
        in_standby = self._lifecycle.state is State.STANDBY
        if self._source is not None and (self.source_is_ours or not in_standby):
            self._start(self._prepare if in_standby else self._after_activation)

    @staticmethod
    def _start(job: Any) -> None:
        threading.Thread(target=job, name="handover", daemon=True).start()

    def identify(self) -> dict[str, Any]:
        """Who this disk is."""
        meta = self._store.meta
        return {
            "id": meta.id,
            "epoch": meta.epoch,
            "seal": meta.seal,
            "moved": meta.moved,
            "base": None if meta.base is None else vars(meta.base),
            "group_bytes": self._parts.heat.group_bytes,
            "block_bytes": meta.block_bytes,
        }

    def epoch(self) -> dict[str, Any]:
        """Begin the dirty map anew."""
        self._lifecycle.begin_epoch()
        return self.identify()

    def seal(self) -> dict[str, Any]:
        """Refuse writes from here on; all that were acknowledged are durable. Again: no change."""
        self._lifecycle.seal()
        return self.identify()

    def moved(self) -> dict[str, Any]:
        """The proxy that sealed this disk is active: the seal can't be undone any more."""
        self._lifecycle.note_moved()
        return self.identify()

    def unseal(self) -> dict[str, Any]:
        """Undo a seal.

        Raises:
            StateError: a proxy is active: it may have accepted writes already.
        """
        self._lifecycle.unseal()
        return self.identify()

    def activate_by_write(self, refusal: StateError) -> None:
        """The guest's first write at this site says that it has moved."""
        if self._lifecycle.state is not State.STANDBY:
            raise refusal
        self.activate()

    def activate(self) -> dict[str, Any]:
        """Take over the disk: the guest may write here once this returns.

        Raises:
            UpstreamError: the source could not be sealed; nothing has changed.
        """
        with self._lock:
            if self._lifecycle.state is not State.STANDBY:
                return {"dropped_blocks": 0}
            dropped = self._take_over()
        if self._parts.transfer is not None:
            self._parts.transfer.pacer.set_enabled(self._parts.settings.background)
        self._start(self._after_activation)
        return {"dropped_blocks": dropped}

    def _take_over(self) -> int:
        """Seal the source, drop what is older than the seal, be active; returns what it dropped."""
        source, transfer = self._source, self._parts.transfer
        if source is None or transfer is None or not self.source_is_ours:
            self._lifecycle.activate()
            return 0  # its samples are taken afterwards: now the guest waits
        answer = source.call("seal")
        transfer.hydration.disown_fetches()
        dropped = self._store.drop(_stale(self._store, answer))
        self._lifecycle.activate(base=base_of(answer), origin_id=answer["id"])
        return dropped

    def verify(self) -> dict[str, Any]:
        """Compare every block that was fetched and never written here with the source.

        Raises:
            StateError: blocks differ, or the source can't be asked.
        """
        if self._source is None or not self.source_is_ours:
            raise StateError("'verify' needs a source that is a relocator")
        return compare(self._store, self._source)

    def _prepare(self) -> None:
        try:
            if self._source is not None:
                self._source.prepare("seal")
        except UpstreamError:
            return  # it is connected to at the switch, then; that costs a few round trips

    def _after_activation(self) -> None:
        """Tell the source, and ask it what the order may rest on; again if it can't be reached."""
        source, transfer = self._source, self._parts.transfer
        if source is None or transfer is None:
            return
        faults, lifecycle = self._parts.faults, self._lifecycle
        for delay_s in backoff(1.0, limit_s=AGAIN_S):
            try:
                self._tell_and_ask(source, transfer)
            except RelocatorError as error:
                faults.report(HANDOVER, f"nothing more is known of the source: {error}")
            except Exception as error:  # ours, but no guest waits for this: the log has it
                traceback.print_exc()
                what = f"{type(error).__name__}: {error}"
                faults.report(HANDOVER, f"the source can't be asked, a defect of ours: {what}")
                return
            else:
                faults.report(HANDOVER, None)
                return
            if lifecycle.stopping.wait(delay_s) or not lifecycle.unfinished:
                return

    def _tell_and_ask(self, source: Source, transfer: Transfer) -> None:
        if self.source_is_ours:
            source.call("moved")
        if self._store.meta.origin_samples is None:
            self._store.update(origin_samples=samples_at(source.endpoint))
        hints.ask(
            source,
            self._parts.plan,
            transfer.hydration,
            skip_free=self._parts.settings.skip_free,
            ours=self.source_is_ours,
        )


def _stale(store: Store, answer: Answer) -> list[tuple[int, int]]:
    """What changed at the source since the copy began; everything, if that can't be told."""
    base, total = store.meta.base, store.geometry.total_blocks
    same = base is not None and (base.id, base.epoch) == (answer["id"], answer["epoch"])
    if not same or answer["block_bytes"] != store.meta.block_bytes:
        return [(0, total)]
    return answer.map("dirty", total)
