"""What testbed/gauge measures, out of a formula: nobody's measurement."""

from typing import Any

RTT_S = {"near": 0.02, "far": 0.1}
KINDS = (
    *("target_read", "present_read", "present_read_16", "complete_read", "present_write"),
    *("absent_write", "partial_write", "miss", "large_miss"),
)
WAITS = ("standby_read", "first_write", "miss", "large_miss", "partial_write")


def measured(
    *, miss_ns: int = 300_000, miss_trips: float = 1.0, copy_s: float = 3.0
) -> dict[str, Any]:
    """All parts; the arguments are what tests change."""
    costs = {kind: {"count": 100, "target_ns": 2_000_000, "proxy_ns": 5_000_000} for kind in KINDS}
    costs["miss"]["proxy_ns"] = 100 * miss_ns
    seconds = {kind: [0.2, 0.2] for kind in WAITS}
    seconds |= {"miss": [0.2 * miss_trips] * 2, "activate": [0.002], "absent_write": [0.0002]}
    return {
        "requests": {"costs": costs, "memory": {}},
        "misses": {"rtt_s": 0.2, "seconds": seconds},
        "copies": {
            link: {"rtt_s": rtt_s, "copies": [_copy(rtt_s, copy_s)]}
            for link, rtt_s in RTT_S.items()
        },
    }


def _copy(rtt_s: float, copy_s: float) -> dict[str, Any]:
    memory = {"rss": 32_000, "peak": 35_000, "anonymous": 17_000}
    first = [[0.0, 1.0]]
    return {
        "activate_s": 0.004,
        "copy_s": copy_s,
        "allocated_bytes": 16 << 20,
        "received_bytes": 17 << 20,
        "sent_bytes": 1 << 20,
        "source_requests": 800,
        "target_ns": 70_000_000,
        "proxy_ns": 600_000_000,
        "memory": {"target": memory, "proxy": memory},
        "reads": first + [[0.01 * n, 0.001 if n % 2 else rtt_s + n * 1e-4] for n in range(1, 101)],
        "writes": first + [[0.01 * n, n * 1e-5] for n in range(1, 101)],
    }
