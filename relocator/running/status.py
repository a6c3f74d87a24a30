"""The status object: one JSON object that the command line, metrics and experiments all read.

Every field is described in docs/status.md. On-demand and background are counted apart; bytes are
payload bytes, rates are bits a second over the last few seconds.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from relocator import __version__, words
from relocator.copying.pacer import Pacer
from relocator.copying.seeding import Seeding
from relocator.errors import ConfigError
from relocator.running.disk import Disk
from relocator.running.parts import Parts, Transfer
from relocator.store.bitmap import Bitmap
from relocator.store.meta import Meta

METER_S = 5.0
MAP_CELLS = 240
_MOST_CELLS = 1 << 16


class RateMeter:
    """Rate of a counter over the last `METER_S` seconds, sampled whenever it is read.

    Any thread may read it: each client of the control socket has its own.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque([(now(), 0)])

    def bits_per_s(self, total_bytes: int) -> float:
        """Note the counter's value and return its rate."""
        with self._lock:
            now_s = self._now()
            while len(self._samples) > 1 and self._samples[1][0] <= now_s - METER_S:
                self._samples.popleft()
            then_s, then_bytes = self._samples[0]
            self._samples.append((now_s, total_bytes))
        return (total_bytes - then_bytes) * 8 / (now_s - then_s) if now_s > then_s else 0.0


class Status:
    """Says what a running disk is doing."""

    def __init__(self, parts: Parts, disk: Disk, handover: Callable[[], dict[str, Any]]) -> None:
        self._parts = parts
        self._disk = disk
        self._handover = handover
        self._meter = RateMeter(time.monotonic)
        self._file_system = parts.store.image.file_system

    def now(self) -> dict[str, Any]:
        """The status object."""
        handover = self._handover()
        return {
            "version": __version__,
            "graduated": False,
            **self._of_disk(),
            **handover,
            **self._of_source(),
            **self._of_copy(),
            "notes": [words.printable(one) for one in (*self._notes, *handover["notes"])],
            **self._disk.status(),
        }

    def _of_disk(self) -> dict[str, Any]:
        store, lifecycle = self._parts.store, self._parts.lifecycle
        return {
            "role": lifecycle.role.value,
            "state": lifecycle.state.value,
            "id": store.meta.id,
            "epoch": store.meta.epoch,
            "block_bytes": store.geometry.block_bytes,
            "total_blocks": store.geometry.total_blocks,
            "present_blocks": store.present_blocks,
            "dirty_blocks": store.dirty_blocks,
            "diverged": store.diverged.any(0, store.diverged.bits),
            "image": str(store.image.path),
            "file_system": self._file_system,
            "free_bytes": store.image.free_bytes,
            "unallocated_bytes": max(0, store.image.size_bytes - store.image.allocated_bytes),
        }

    def _of_source(self) -> dict[str, Any]:
        meta, transfer = self._parts.store.meta, self._copying
        connected = transfer is not None and transfer.upstream.connected
        error = (transfer and transfer.upstream.refusal) or self._parts.faults.worst
        return {
            "source": meta.source,
            "source_connected": connected,
            "source_silent_s": round(transfer.upstream.silent_s, 1) if transfer else 0.0,
            "source_connections": transfer.upstream.connections if transfer and connected else 0,
            "source_offers": _offers(meta),
            "error": error and words.printable(error),
            "faults": {
                part: fault and words.printable(fault)
                for part, fault in self._parts.faults.all.items()
            },
        }

    def _of_copy(self) -> dict[str, Any]:
        store, plan = self._parts.store, self._parts.plan
        hydration = None if self._parts.transfer is None else self._parts.transfer.hydration
        seeding = None if self._parts.transfer is None else self._parts.transfer.seeding
        pacer = None if self._copying is None else self._copying.pacer
        on_demand = 0 if hydration is None else hydration.on_demand_bytes
        background = 0 if hydration is None else hydration.background_bytes
        rate = self._meter.bits_per_s(on_demand + background)
        change = None if pacer is None else pacer.next_cap
        group = None if pacer is None else pacer.group
        deadline = None if pacer is None else pacer.finish_by
        missing = store.absent_bytes
        arrives = rate > 0 and self._copying is not None and self._copying.upstream.connected
        return {
            "on_demand_bytes": on_demand,
            "background_bytes": background,
            "hole_bytes": 0 if hydration is None else hydration.hole_bytes,
            "skipped_bytes": 0 if hydration is None else hydration.skipped_bytes,
            "seeded_bytes": 0 if hydration is None else hydration.seeded_bytes,
            **_of_seeds(seeding),
            "known": plan.known,
            "background": _background(pacer),
            "order": ",".join(plan.keys),
            "rate_bits_per_s": rate,
            "rate_cap_bits_per_s": None if pacer is None else pacer.rate_cap_bits_per_s,
            "next_rate_cap": None if change is None else change._asdict(),
            "rate_group": None if group is None else group[0],
            "rate_group_members": 0 if group is None else group[1],
            "finish_by_s": None if deadline is None else deadline[0],
            "late_s": None if deadline is None else deadline[1],
            "window_bytes": 0 if pacer is None else pacer.window_bytes,
            "in_flight_bytes": 0 if pacer is None else pacer.in_flight_bytes,
            "eta_s": 0.0 if missing == 0 else (missing * 8 / rate if arrives else None),
        }

    @property
    def _notes(self) -> tuple[str, ...]:
        seeding = None if self._parts.transfer is None else self._parts.transfer.seeding
        of_seeds = seeding.notes if seeding else ()
        return (*self._parts.store.notes, *self._parts.plan.notes, *of_seeds)

    @property
    def _copying(self) -> Transfer | None:
        """What brings blocks here, as long as some are absent."""
        return self._parts.transfer if self._parts.lifecycle.unfinished else None

    def map(self, cells: Any) -> dict[str, list[float]]:
        """For each of `cells` equal stretches of the disk the share present and the share dirty.

        There are no more stretches than blocks. A share of 0 or 1 is exact.

        Raises:
            ConfigError: `cells` isn't a number from 1 to 65536.
        """
        store = self._parts.store
        total = store.geometry.total_blocks
        cells = min(check_cells(cells), total)
        edges = [total * at // cells for at in range(cells + 1)] if cells else []

        def shares(bitmap: Bitmap) -> list[float]:
            return [_share(bitmap.count(a, b), b - a) for a, b in pairwise(edges)]

        all_here = self._parts.lifecycle.all_here
        return {
            "present": [1.0] * cells if all_here else shares(store.present),
            "dirty": shares(store.dirty) if store.dirty_blocks else [0.0] * cells,
        }


def check_cells(cells: Any) -> int:
    """How many stretches are asked for.

    Raises:
        ConfigError: it is no number, or not one from 1 to 65536.
    """
    if type(cells) is not int or not 1 <= cells <= _MOST_CELLS:
        raise ConfigError(f"cells={cells}: must be a number from 1 to {_MOST_CELLS}")
    return cells


def _share(count: int, of: int) -> float:
    """`count / of` to four digits, but 0 and 1 only for none and all."""
    return count / of if count in (0, of) else min(0.9999, max(0.0001, round(count / of, 4)))


def _offers(meta: Meta) -> str | None:
    """Whether the source is a relocator, with heat, pre-seed and sealing, or offers blocks only."""
    if meta.source is None:
        return None
    return "everything" if meta.base is not None else "bitmap" if meta.bitmap else "blocks"


def _of_seeds(seeding: Seeding | None) -> dict[str, Any]:
    """What comparing with seeds has cost so far."""
    if seeding is None:
        return {"seeding": "off", "digest_bytes": 0, "digested_bytes": 0, "seeding_s": 0.0}
    return {
        "seeding": "over" if seeding.ended else "on",
        "digest_bytes": seeding.digest_bytes,
        "digested_bytes": seeding.digested_bytes,
        "seeding_s": seeding.seconds,
    }


def _background(pacer: Pacer | None) -> str:
    """`on`, `paused` or `off`."""
    if pacer is None:
        return "off"
    return "paused" if pacer.paused else "on" if pacer.running else "off"
