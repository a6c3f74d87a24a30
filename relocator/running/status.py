"""The status object: one JSON object that the command line, metrics and experiments all read.

Every field is described in docs/status.md. On-demand and background are counted apart; bytes are
payload bytes, rates are bits a second over the last few seconds.
"""

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from relocator import __version__
from relocator.errors import ConfigError
from relocator.store.bitmap import Bitmap

if TYPE_CHECKING:
    from relocator.copying.copier import Copier
    from relocator.running.engine import Engine

METER_S = 5.0
MAP_CELLS = 240
_MOST_CELLS = 1 << 16


class RateMeter:
    """Rate of a counter over the last `METER_S` seconds, sampled whenever it is read."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._samples: deque[tuple[float, int]] = deque([(now(), 0)])

    def bits_per_s(self, total_bytes: int) -> float:
        """Note the counter's value and return its rate."""
        now_s = self._now()
        while len(self._samples) > 1 and self._samples[1][0] <= now_s - METER_S:
            self._samples.popleft()
        then_s, then_bytes = self._samples[0]
        self._samples.append((now_s, total_bytes))
        return (total_bytes - then_bytes) * 8 / (now_s - then_s) if now_s > then_s else 0.0


def status_of(engine: "Engine") -> dict[str, Any]:
    """The status object of a disk, whatever it is at the moment."""
    store, hydration, copier = engine.store, engine.hydration, engine.copier
    copying = copier if engine.role.value == "proxy" else None
    arrived = 0 if hydration is None else hydration.on_demand_bytes + hydration.background_bytes
    rate = engine.meter.bits_per_s(arrived)
    missing = (store.geometry.total_blocks - store.present_blocks) * store.geometry.block_bytes
    connected = copying is not None and engine.upstream is not None and engine.upstream.connected
    return {
        "version": __version__,
        "role": engine.role.value,
        "state": engine.state.value,
        "graduated": False,
        "id": store.meta.id,
        "epoch": store.meta.epoch,
        "source": store.meta.source,
        "source_connected": connected,
        "source_connections": engine.upstream.connections if connected and engine.upstream else 0,
        "source_offers": _offers(engine),
        "block_bytes": store.geometry.block_bytes,
        "total_blocks": store.geometry.total_blocks,
        "present_blocks": store.present_blocks,
        "dirty_blocks": store.dirty_blocks,
        "on_demand_bytes": 0 if hydration is None else hydration.on_demand_bytes,
        "background_bytes": 0 if hydration is None else hydration.background_bytes,
        "hole_bytes": 0 if hydration is None else hydration.hole_bytes,
        "skipped_bytes": 0 if hydration is None else hydration.skipped_bytes,
        "notes": list(engine.notes),
        "known": _known(engine),
        "background": _background(copying),
        "order": ",".join(engine.order),
        "rate_bits_per_s": rate,
        "rate_cap_bits_per_s": None if copying is None else copying.rate_cap_bits_per_s,
        "window_bytes": 0 if copying is None else copying.window.limit_bytes,
        "in_flight_bytes": 0 if copying is None else copying.window.in_flight_bytes,
        "eta_s": 0.0 if missing == 0 else (missing * 8 / rate if rate > 0 else None),
        "error": _trouble(engine, copying),
        **engine.disk.status(),
    }


def _trouble(engine: "Engine", copier: "Copier | None") -> str | None:
    """What stands in the way of the copy, the worst first."""
    if copier is None or engine.upstream is None:
        return engine.failure
    return engine.upstream.refusal or engine.failure or copier.last_error


def map_of(engine: "Engine", cells: Any) -> dict[str, list[float]]:
    """For each of `cells` equal stretches of the disk the share present and the share dirty.

    There are no more stretches than blocks. A share of 0 or 1 is exact.

    Raises:
        ConfigError: `cells` isn't a number from 1 to 65536.
    """
    if type(cells) is not int or not 1 <= cells <= _MOST_CELLS:
        raise ConfigError(f"cells={cells}: must be a number from 1 to {_MOST_CELLS}")
    store = engine.store
    total = store.geometry.total_blocks
    cells = min(cells, total)
    edges = [total * at // cells for at in range(cells + 1)] if cells else []

    def shares(bitmap: Bitmap) -> list[float]:
        return [_share(bitmap.count(a, b), b - a) for a, b in pairwise(edges)]

    return {
        "present": [1.0] * cells if engine.disk.all_here else shares(store.present),
        "dirty": shares(store.dirty) if store.dirty_blocks else [0.0] * cells,
    }


def _share(count: int, of: int) -> float:
    """`count / of` to four digits, but 0 and 1 only for none and all."""
    return count / of if count in (0, of) else min(0.9999, max(0.0001, round(count / of, 4)))


def _offers(engine: "Engine") -> str | None:
    """Whether the source is a relocator, with heat, pre-seed and sealing, or offers blocks only."""
    if engine.store.meta.source is None:
        return None
    return "everything" if engine.store.meta.base is not None else "blocks"


def _known(engine: "Engine") -> list[str]:
    """What the order of the background copy can rest on by now."""
    knowledge = engine.knowledge
    found = {"hot": bool(knowledge.heat), "in-use": knowledge.in_use is not None}
    return [name for name, known in found.items() if known]


def _background(copier: "Copier | None") -> str:
    """`on`, `paused` or `off`."""
    if copier is None:
        return "off"
    return "paused" if copier.paused else "on" if copier.running else "off"
