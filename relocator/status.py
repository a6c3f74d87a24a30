"""The status object: one JSON object that the command line, metrics and experiments all read.

Every field is described in docs/status.md. On-demand and background are counted apart; bytes are
payload bytes, rates are bits a second over the last few seconds.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from relocator import __version__

if TYPE_CHECKING:
    from relocator.disk import TargetDisk
    from relocator.engine import ProxyEngine

METER_S = 5.0


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


def target_status(disk: "TargetDisk") -> dict[str, Any]:
    """A target: everything is here."""
    return {
        "version": __version__,
        "role": "target",
        "state": "complete",
        "source": None,
        "source_connected": False,
        "background": "off",
        "eta_s": 0.0,
        "rate_bits_per_s": 0.0,
        "error": None,
        **disk.status(),
    }


def proxy_status(engine: "ProxyEngine") -> dict[str, Any]:
    """A proxy, or what has become of one."""
    store, hydration, copier = engine.store, engine.hydration, engine.copier
    arrived = 0 if hydration is None else hydration.on_demand_bytes + hydration.background_bytes
    rate = engine.meter.bits_per_s(arrived)
    missing = (store.geometry.total_blocks - store.present_blocks) * store.geometry.block_bytes
    active = engine.state.value == "active"
    return {
        "version": __version__,
        "role": engine.role.value,
        "state": engine.state.value,
        "source": store.meta["source"],
        "source_connected": active and engine.upstream is not None and engine.upstream.connected,
        "block_bytes": store.geometry.block_bytes,
        "total_blocks": store.geometry.total_blocks,
        "present_blocks": store.present_blocks,
        "dirty_blocks": store.dirty_blocks,
        "on_demand_bytes": 0 if hydration is None else hydration.on_demand_bytes,
        "background_bytes": 0 if hydration is None else hydration.background_bytes,
        "hole_bytes": 0 if hydration is None else hydration.hole_bytes,
        "background": _background(engine),
        "rate_bits_per_s": rate,
        "rate_cap_bits_per_s": None if copier is None else copier.rate_cap_bits_per_s,
        "window_bytes": 0 if copier is None or not active else copier.window.limit_bytes,
        "in_flight_bytes": 0 if copier is None or not active else copier.window.in_flight_bytes,
        "eta_s": 0.0 if missing == 0 else (missing * 8 / rate if rate > 0 else None),
        "error": engine.failure or (copier.last_error if copier is not None and active else None),
        **engine.disk.status(),
    }


def _background(engine: "ProxyEngine") -> str:
    """`on`, `paused` or `off`."""
    if engine.copier is None or engine.state.value != "active":
        return "off"
    if engine.copier.paused:
        return "paused"
    return "on" if engine.copier.running else "off"
