"""How authority over a disk moves from site to site.

At the source: `epoch` begins the dirty map anew, while writes go on; `seal` drains the writes in
progress, makes all durable and lets no further one pass, and its token names the content that was
frozen; `moved` makes the seal final, `withdrawn` undoes it. At the destination: a copy notes what
it was taken from (its *base*: id, epoch, seal), and takes the disk over (see activation.py).

    standby:  epoch e at the source; copy ahead (pre-seed); reads pass through
    activate: seal -> dirty since e -> drop those blocks -> durable -> active -> moved
    return:   a sealed disk whose seal is its successor's base takes back only what diverged there

State changes are the lifecycle's. `_epochs` lets one epoch begin at a time and guards `_ended`.
"""

import threading
import time
import traceback
from typing import Any

from relocator.copying import hints
from relocator.errors import RelocatorError, StateError
from relocator.running.activation import AGAIN_S, Activation
from relocator.running.parts import HANDOVER, Parts, Transfer
from relocator.source.connection import backoff
from relocator.source.identity import samples_at
from relocator.source.measure import measure
from relocator.source.remote import Source
from relocator.source.verify import compare
from relocator.store import runs


class Handover:
    """The verbs that move authority over one disk."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._lifecycle = parts.lifecycle
        self._parts = parts
        self._epochs = threading.Lock()
        self._ended: tuple[int, bytes] | None = None
        endpoint = parts.settings.endpoint
        self._source = None if endpoint is None else Source(endpoint)
        self.activation = Activation(parts, self._source, self._after_activation)

    @property
    def source_is_ours(self) -> bool:
        """Whether the source was found to be a relocator when the copy began."""
        return self._store.meta.base is not None

    @property
    def copies_ahead(self) -> bool:
        """Whether something may be copied before the disk is taken over."""
        return self.activation.rounds is not None

    def identify(self) -> dict[str, Any]:
        """Who this disk is."""
        meta = self._store.meta
        return {
            "id": meta.id,
            "epoch": meta.epoch,
            "seal": meta.seal,
            "moved": meta.moved,
            "complete": meta.complete,
            "base": None if meta.base is None else vars(meta.base),
            "group_bytes": self._parts.heat.group_bytes,
            "block_bytes": meta.block_bytes,
            "digests": "blake2b-256",
            "time_s": time.time(),
        }

    def epoch(self, known: int | None = None) -> tuple[dict[str, Any], bytes]:
        """Begin the dirty map anew; who this disk is then, and what the map was (packed).

        `known` is the epoch that the caller has noted. If the next one has begun already, and
        nothing but its answer was lost, this is that answer. If nothing was written in the epoch
        that is known, it goes on.
        """
        with self._epochs:
            if known is None or self._ended is None or self._ended[0] != known + 1:
                epoch, ended = self._lifecycle.begin_epoch(known)
                packed = runs.pack(ended)
                if epoch != known:
                    self._ended = epoch, packed
            else:
                epoch, packed = self._ended
        return {**self.identify(), "epoch": epoch}, packed

    def ended(self) -> dict[str, bytes]:
        """What was dirty in the epoch before this one (packed), if that is still known."""
        with self._epochs:
            known = self._ended is not None and self._ended[0] == self._store.meta.epoch
            return {"ended": self._ended[1]} if known and self._ended is not None else {}

    def seal(self, token: str | None = None) -> dict[str, Any]:
        """Let no write pass from here on; all that were acknowledged are durable."""
        self._lifecycle.seal(token)
        return self.identify()

    def moved(self) -> dict[str, Any]:
        """The proxy that sealed this disk is active: the seal can't be undone any more."""
        self._lifecycle.note_moved()
        return self.identify()

    def withdrawn(self, token: str) -> dict[str, Any]:
        """The proxy that made the seal `token` has given the disk back without having written."""
        unsealed = self._lifecycle.note_withdrawn(token)
        return {**self.identify(), "unsealed": unsealed}

    def unseal(self) -> dict[str, Any]:
        """Undo a seal.

        Raises:
            StateError: a proxy is active: it may have accepted writes already.
        """
        self._lifecycle.unseal()
        return self.identify()

    def measure(self) -> dict[str, Any]:
        """What the way to the source is like; takes some seconds, and bandwidth.

        Raises:
            StateError: there is no source.
            UpstreamError: it can't be read.
        """
        if self._source is None:
            raise StateError("'measure' needs a source")
        return measure(self._source.endpoint)

    def verify(self) -> dict[str, Any]:
        """Compare every block that was fetched and never written here with the source.

        Raises:
            StateError: blocks differ, or the source can't be asked.
        """
        if self._source is None or not self.source_is_ours:
            raise StateError("'verify' needs a source that is a relocator")
        return compare(self._store, self._source)

    def _after_activation(self) -> None:
        """Tell the source, and ask it what the order may rest on; again if it can't be reached."""
        source, transfer = self._source, self._parts.transfer
        if source is None or transfer is None:
            return
        transfer.pacer.wake()  # perhaps all has come with the seal
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
            if lifecycle.pass_through:
                return  # withdrawn

    def _tell_and_ask(self, source: Source, transfer: Transfer) -> None:
        self.activation.tell_moved()
        if self._store.meta.origin_samples is None:
            self._store.update(origin_samples=samples_at(source.endpoint))
        hints.ask(
            source,
            self._parts.plan,
            transfer.hydration,
            skip_free=self._parts.settings.skip_free,
            ours=self.source_is_ours,
        )
