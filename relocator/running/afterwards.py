"""What the source is told, and asked, once writes pass here.

    moved     writes pass here; said until it is heard, and again now and then while blocks are
              fetched. A source that was unsealed by force refuses that, and is found out
    outdated  then there are two versions of the disk: no write passes here any more
    hints     what the order of the copy may rest on: asked once

`lock` orders `moved`, and what the source is known by, against a withdrawal; it is held across
I/O. So is `_asking`, as long as what was asked is noted and stored.
"""

import sys
import threading
import traceback
from contextlib import suppress

from relocator.copying import hints
from relocator.errors import (
    OutdatedError,
    RelocatorError,
    StateError,
    StoreError,
)
from relocator.jobs import start
from relocator.running.lifecycle import OUTDATED
from relocator.running.parts import HANDOVER, Parts, Transfer
from relocator.source.connection import backoff
from relocator.source.handles import check_size, connected
from relocator.source.identity import check_fetched, samples, takes_back, unsealed
from relocator.source.remote import Source

#: at most so long until the source is told again, and asked again what the order may rest on
AGAIN_S = 30.0
#: so long the end waits for an answer of the source's; what is stored by then is waited for anyhow
_PATIENCE_S = 1.0


class Afterwards:
    """Speaks to `source` once this disk is active."""

    def __init__(self, parts: Parts, source: Source | None, lock: threading.Lock) -> None:
        self._parts = parts
        self._store = parts.store
        self._lifecycle = parts.lifecycle
        self._source = source
        self._lock = lock
        self._asking = threading.Lock()
        self._latest = 0  # of the threads that run this: only the last activation's goes on

    def run(self) -> None:
        """Tell the source, and ask it; again if it can't be reached (a thread)."""
        source, transfer = self._source, self._parts.transfer
        if source is None or not self._concerned:
            return
        mine = self._latest = self._latest + 1
        if transfer is not None:
            transfer.pacer.wake()  # perhaps all has come with the seal
        faults = self._parts.faults
        for delay_s in backoff(1.0, limit_s=AGAIN_S):
            try:
                self.tell_moved()
                self._ask(source, transfer)
            except OutdatedError:
                return
            except StoreError as error:
                faults.report(HANDOVER, f"what the source said can't be noted: {error}")
            except RelocatorError as error:
                faults.report(HANDOVER, f"nothing more is known of the source: {error}")
            except Exception as error:  # ours, but no guest waits for this: the log has it
                traceback.print_exc()
                what = f"{type(error).__name__}: {error}"
                faults.report(HANDOVER, f"the source can't be asked, a defect of ours: {what}")
                return
            else:
                faults.report(HANDOVER, None)
                self._tell_again(mine)
                return
            if self._lifecycle.stopping.wait(delay_s) or self._latest is not mine:
                return
            if not self._concerned:
                if self._lifecycle.finished.is_set():  # all is here: nothing need be known any more
                    faults.report(HANDOVER, None)
                return

    def join(self) -> None:
        """Wait until nothing is noted of the source any more; once the lifecycle is stopping."""
        if self._asking.acquire(timeout=_PATIENCE_S):
            self._asking.release()

    def _tell_again(self, mine: int) -> None:
        while self._concerned and not self._lifecycle.stopping.wait(AGAIN_S):
            if self._latest is not mine:
                return
            with suppress(RelocatorError):  # a source that is lost is reported by others
                self.tell_moved()

    @property
    def _concerned(self) -> bool:
        """Whether the source is still needed, or doesn't know yet that it isn't."""
        lifecycle = self._lifecycle
        if lifecycle.outdated or lifecycle.pass_through:
            return False
        return lifecycle.unfinished or self._store.meta.untold

    def tell_moved(self) -> None:
        """Tell the source that writes pass here.

        Raises:
            UpstreamError: it can't be told; OutdatedError: it was unsealed by force.
            StateError: it refuses that for now.
            StoreError: it was told, and that can't be noted: it is told again.
        """
        with self._lock:  # a withdrawal comes before this, or finds that it has been said
            meta = self._store.meta
            if self._source is None or meta.origin_seal is None or self._lifecycle.pass_through:
                return
            try:
                self._source.call(f"moved/{meta.origin_seal}")
            except StateError:
                answer = self._source.identify()
                now = self._store.meta  # it may have been sealed for that source meanwhile
                if answer is not None and unsealed(now, answer):
                    self.be_outdated(meta.origin_seal)
                    raise OutdatedError(OUTDATED) from None
                if answer is None or not takes_back(now, answer):
                    raise  # else it knows: it returns as a copy of this disk
            if meta.untold:
                self._store.update(untold=False)

    def be_outdated(self, seal: str | None) -> None:
        """The source has undone `seal` and goes on: let no write pass by that seal, and say so.

        From a thread of its own: a write in progress may wait for a block, and with it for the
        connection by which this was found out.
        """
        start("outdated", self._stop_writes, seal)

    def _stop_writes(self, seal: str | None) -> None:
        with suppress(RelocatorError):  # not durable: found out again by the next process
            self._lifecycle.note_outdated(seal, self._tell_outdated)
        if self._lifecycle.outdated:
            self._tell_outdated()

    def _tell_outdated(self) -> None:
        if self._parts.faults.told(HANDOVER) != OUTDATED:
            self._parts.faults.report(HANDOVER, OUTDATED)
            print(f"relocator: {self._store.image.path}: {OUTDATED}", file=sys.stderr, flush=True)

    def _ask(self, source: Source, transfer: Transfer | None) -> None:
        """Ask what the order may rest on."""
        if transfer is None or not self._lifecycle.unfinished:
            return
        with self._asking:
            if self._stopped:
                return
            if self._store.meta.origin_samples is None:
                self._note_samples(source, transfer)
            hints.ask(
                source,
                transfer.upstream,
                self._store,
                self._parts.plan,
                transfer.hydration,
                skip_free=self._parts.settings.skip_free,
                stopped=lambda: self._stopped,
            )

    @property
    def _stopped(self) -> bool:
        """Whether what is asked for is not to be noted any more."""
        return self._lifecycle.stopping.is_set() or not self._concerned

    def _note_samples(self, source: Source, transfer: Transfer) -> None:
        """Note what the source is known by from now on, unless it lacks what was copied ahead.

        One that has an id is known by that. If the disk was given back meanwhile nothing is noted,
        also if it has been taken over again: what was read is of the time before.

        Raises:
            OtherDiskError: it does: it is not the disk that this one is a copy of.
            UpstreamError: it can't be read.
            StoreError: what was skipped as free, and so lacks nothing, is not known.
        """
        asked = transfer.hydration.disowned
        with connected(source.endpoint) as handle:
            check_size(handle, self._store.geometry.size_bytes)
            if self._stopped:
                return
            if self._store.meta.origin_id is None:
                check_fetched(self._store, handle)
            told = samples(handle)
        with self._lock:
            if not self._stopped and transfer.hydration.disowned == asked:
                self._store.update(origin_samples=told)
