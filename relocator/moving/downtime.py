"""The parts of the pause, from what QEMU and the proxies tell.

QEMU stamps its events with its host's clock, and the two hosts' clocks differ. An event's stamp is
therefore brought to this host's clock by the least delay with which any event of that QEMU arrived
here: what is left of an error is the difference of two one-way delays. The first three parts are
all of the total: each ends where the next begins.

    pause    the guest stands still                                   (STOP)
    drain    QEMU has finished and flushed the disks' requests        (pre-switchover)
    takeover QEMU is told to go on                                   (device)
    state    the last of the guest's state is there, the guest runs   (RESUME)
    seal     every source has confirmed, so the disks are released: the guest's first write passes
    first    the proxy has answered the guest's first read, its first write
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from relocator.moving.monitor import Event


@dataclass(frozen=True)
class Parts:
    """Seconds; None where the events were not seen, such as by a process that came later.

    `total_s` is from the guest's last instruction at the source to its first at the destination.
    `proxy_seal_s` and `proxy_drop_s` are by the proxies' clocks, the longest of all disks, and so
    is `first_write_s`: what the guest's writes waited, at most. `frozen_s`: from the freeze of the
    guest's file systems until they were thawed. The `_answered_s` are the guest's first I/O, from
    its first instruction at the destination until the proxy had answered, of the disk where that
    was first; by the clock of the destination's host, which both are on.
    """

    total_s: float | None = None
    drain_s: float | None = None
    takeover_s: float | None = None
    state_s: float | None = None
    seal_s: float | None = None
    release_s: float | None = None
    qemu_s: float | None = None
    proxy_seal_s: float | None = None
    proxy_drop_s: float | None = None
    first_write_s: float | None = None
    first_read_answered_s: float | None = None
    first_write_answered_s: float | None = None
    frozen_s: float | None = None

    def fields(self) -> dict[str, float | None]:
        """As one JSON object; the names are documented in docs/migrate.md."""
        return vars(self)


class Clocks:
    """Notes when what happened in this process; 1970's seconds, by this host's clock."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._noted: dict[str, float] = {}

    def note(self, what: str) -> None:
        """`what` has happened now."""
        self._noted[what] = self._now()

    def parts(
        self,
        source: Sequence[Event],
        destination: Sequence[Event],
        memory: dict[str, Any],
        disks: Sequence[dict[str, Any] | None],
    ) -> Parts:
        """The parts of the last pause."""
        stopped = _last(source, "STOP")
        drained = _last(source, "MIGRATION", "pre-switchover")
        continued = _last(source, "MIGRATION", "device")
        resumed = _last(destination, "RESUME")
        if resumed is not None and continued is not None:
            resumed = max(resumed, continued)  # what is earlier is the clocks' error
        sealed, released = self._noted.get("sealed"), self._noted.get("released")
        qemu_ms = memory.get("downtime")
        return Parts(
            total_s=_between(stopped, resumed),
            drain_s=_between(stopped, drained),
            takeover_s=_between(drained, continued),
            state_s=_between(continued, resumed),
            seal_s=_between(continued, sealed),
            release_s=_between(resumed, released),
            qemu_s=None if qemu_ms is None else qemu_ms / 1e3,
            proxy_seal_s=_longest(disks, "seal_s"),
            proxy_drop_s=_longest(disks, "drop_s"),
            first_write_s=_longest(disks, "write_waited_s"),
            first_read_answered_s=_first(destination, disks, "first_read_at_s"),
            first_write_answered_s=_first(destination, disks, "first_write_at_s"),
            frozen_s=_between(self._noted.get("frozen"), self._noted.get("thawed")),
        )


def _last(events: Sequence[Event], name: str, status: str | None = None) -> float | None:
    """When the last such event happened, by this host's clock."""
    if not events:
        return None
    delay_s = min(event.received_s - event.at_s for event in events)
    for event in reversed(events):
        if event.name == name and (status is None or event.data.get("status") == status):
            return float(event.at_s + delay_s)
    return None


def _longest(disks: Sequence[dict[str, Any] | None], name: str) -> float | None:
    """The largest of the disks' values."""
    values = [disk[name] for disk in disks if disk is not None and disk[name] is not None]
    return max(values, default=None)


def _first(
    destination: Sequence[Event], disks: Sequence[dict[str, Any] | None], name: str
) -> float | None:
    """How long after the guest resumed the first disk did what `name` is the time of."""
    resumed = next((event.at_s for event in reversed(destination) if event.name == "RESUME"), None)
    times = [disk[name] for disk in disks if disk is not None and disk[name] is not None]
    return _between(resumed, min(times, default=None))


def _between(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else max(0.0, second - first)
