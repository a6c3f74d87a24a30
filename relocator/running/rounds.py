"""Rounds in standby: the copy is kept in step with a guest that goes on writing at the source.

    copy ahead, what is written often last
    round:  a new epoch at the source -> what became dirty in the ended one is dropped here,
            and noted: the copy is of the new epoch -> fetched again
    again at once, as long as it is less each time; then every `refresh_s`

Nobody waits for an epoch to begin at the source. The source tells what became dirty in the epoch
that the copy is of, again if its answer was lost, and once more with its seal: so a round may be
interrupted anywhere, by a switch too, and costs no more than its blocks. An older source doesn't:
it is asked only when an operator says so, and an answer that is lost makes everything stale.

`_one` lets one round begin at a time and is held across I/O. What it brings is applied under the
lock that the activation gives, if this is still in standby then: no switch waits for the source.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from relocator.copying import heat
from relocator.errors import StateError, UpstreamError
from relocator.running import states
from relocator.running.parts import HANDOVER, Parts, Transfer
from relocator.running.states import State
from relocator.source.remote import Answer, Source, base_of, stale
from relocator.store.meta import Base

#: a round that leaves more than this of the one before is the last of those at once
_SHRINKS = 0.75
_NOT_OURS = "'refresh' needs a source that is a relocator"


class Rounds:
    """Keeps the copy of what `source` has in step. `lock` orders what it does with a switch."""

    def __init__(
        self,
        parts: Parts,
        source: Source,
        lock: threading.Lock,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = parts
        self._store = parts.store
        self._source = Source(source.endpoint)  # its own: the other keeps a connection for the seal
        self._lock = lock
        self._now = now
        self._one = threading.Lock()
        #: seconds between rounds once they shrink no more; None is no rounds
        self.refresh_s = parts.settings.refresh_s
        self._count = 0
        self._began_s: float | None = None  # of the epoch that the copy is of
        self._bytes_per_s = 0.0  # written at the source in the epoch before
        self._last_blocks = self._store.geometry.total_blocks
        self._asked = self._holding = False
        self._again_s = 0.0
        self._tells_again: bool | None = None
        self._failing = False

    def _begin(self) -> None:
        """Ask which places are written often, to copy them last; it is only order."""
        try:
            answer = self._source.call("identify")
            self._tells_again = "digests" in answer.fields  # it came a little later than epoch/N
            written = heat.unpack(self._source.export("write-heat"))
            shift = int(answer["group_bytes"]).bit_length() - 1
        except (UpstreamError, ValueError):
            return
        self._parts.plan.add(written=written, heat_shift=shift)

    def step(self) -> None:
        """Begin a round if it is time; called now and then, by one thread."""
        if not self._asked and self._copying:
            self._asked = True
            self._begin()
        if self.refresh_s is None or not self._in_step or self._now() < self._again_s:
            return
        try:
            if not self._asks_again():
                return
            dropped = self.refresh()["refreshed_blocks"]
        except StateError:
            return  # it moves
        except UpstreamError as error:
            self._again_s = self._now() + self.refresh_s
            self._failing = True
            self._parts.faults.report(HANDOVER, f"the copy is not kept in step: {error}")
            return
        if self._failing:
            self._failing = False
            self._parts.faults.report(HANDOVER, None)
        self._holding = self._holding or not 0 < dropped < self._last_blocks * _SHRINKS
        self._last_blocks = dropped
        self._again_s = self._now() + (self.refresh_s if self._holding else 0.0)

    @property
    def _copying(self) -> bool:
        transfer = self._parts.transfer
        return transfer is not None and transfer.pacer.running

    @property
    def _in_step(self) -> bool:
        """Whether all is here that was asked for, and the copy goes on."""
        standing_by = self._parts.lifecycle.state is State.STANDBY
        return standing_by and self._copying and self._store.all_present

    def _asks_again(self) -> bool:
        """Whether the source gives an answer again that was lost."""
        if self._tells_again is None:
            self._tells_again = "digests" in self._source.call("identify").fields
        return self._tells_again

    def refresh(self) -> dict[str, int]:
        """One round: drop what was written at the source since it was copied, to be copied again.

        Raises:
            StateError: not in standby, or the source is not a relocator.
            UpstreamError: the source can't be asked; nothing has changed.
        """
        with self._one:
            transfer, base = self._parts.transfer, self._store.meta.base
            if transfer is None or base is None:
                raise StateError(_NOT_OURS)
            self._check()
            if self._asks_again():
                answer = self._source.call(f"epoch/{base.epoch}")
                with self._lock:
                    return {"refreshed_blocks": self._apply(transfer, base, answer)}
            with self._lock:  # its answer can't be had twice: a switch has to wait for it
                self._check()
                return {"refreshed_blocks": self._apply(transfer, base, self._source.call("epoch"))}

    def _check(self) -> None:
        states.check(self._parts.lifecycle.state, "refresh")
        if self._parts.lifecycle.stopping.is_set():
            raise StateError("'refresh' is refused: the proxy is being stopped")

    def _apply(self, transfer: Transfer, base: Base, answer: Answer) -> int:
        """Drop what is stale, and note the epoch that the copy is of; with the lock."""
        self._check()
        dropped = 0
        if base_of(answer) != base:
            transfer.hydration.disown_fetches()
            dropped = self._store.drop(stale(self._store, answer, "ended", began=1))
            self._store.update(base=base_of(answer))
        now_s = self._now()
        if self._began_s is not None and now_s > self._began_s:
            written = dropped * self._store.geometry.block_bytes
            self._bytes_per_s = written / (now_s - self._began_s)
        self._began_s = now_s
        self._count += 1
        return dropped

    def status(self) -> dict[str, Any]:
        """How far the copy is behind; part of the status object."""
        behind = behind_s = None
        if self._parts.lifecycle.state is State.STANDBY and self._began_s is not None:
            written = int(self._bytes_per_s * (self._now() - self._began_s))
            behind = min(self._store.geometry.size_bytes, self._store.absent_bytes + written)
            behind_s = self._seconds(behind)
        return {
            "rounds": self._count,
            "refresh_s": self.refresh_s,
            "behind_bytes": behind,
            "behind_s": behind_s,
        }

    def _seconds(self, length: int) -> float | None:
        """How long the link takes for it; None if that isn't known yet."""
        if length == 0:
            return 0.0
        rate = self._parts.transfer.pacer.bytes_per_s if self._parts.transfer else 0.0
        return length / rate if rate else None


#: what a disk that never stands by says of it
NO_ROUNDS: dict[str, Any] = {
    "rounds": 0,
    "refresh_s": None,
    "behind_bytes": None,
    "behind_s": None,
}
