"""A small matrix of synthetic runs, a few of each scenario, for tests of the evaluation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.synthetic_run import Synthetic, write_run

SHORT: dict[str, Any] = {
    "allocated_bytes": 24 << 20,
    "memory_copy_at_s": 6.0,
    "switch_at_s": 8.0,
    "background_delay_s": 2.0,
    "duration_s": 24.0,
}
PEERS = ("relocator", "remote", "stay", "offline", "mirror", "qemu-stream")


def cells(seeds: int = 1) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cell without its seed, and what differs from SHORT."""
    for rtt in (20, 100):
        for system in PEERS:
            more = {"speed": 0.3} if system == "qemu-stream" else {}
            yield (
                f"compare/rtt={rtt}ms,rate=100mbit/{system}",
                {
                    "system": system,
                    "rtt_s": rtt / 1000,
                    **more,
                },
            )
    yield "e1/on-demand", {"background": False, "rtt_s": 0.0}
    yield "e2/on-demand", {"background": False}
    yield "e2/one-request", {"speed": 0.19}
    yield "e2/relocator", {}
    for name, more in (
        ("stay", {"system": "stay"}),
        ("remote", {"system": "remote"}),
        ("on-demand", {"background": False}),
        ("background", {}),
    ):
        yield f"e4/{name}", more
    yield "e7/none", {}
    yield "e7/preseed", {"settings": {"preseed": "yes"}}
    yield "e7/mirror", {"system": "mirror"}
    for window, speed in (("64K", 0.2), ("128K", 0.4), ("1M", 0.8), ("auto", 0.94)):
        yield f"e8/window={window}/relocator", {"speed": speed}
    for name, hit in (("sequential", 1.0), ("in-use+hot", 2.0), ("oracle", 4.0)):
        yield f"ordering/{name}", {"hit": hit}
    yield "pacing/auto", {}
    yield "pacing/window-8M", {"speed": 0.98, "slow": 2.0}
    yield "outage/event=none/relocator", {}
    yield "outage/event=cut-2s/relocator", {"cut": (12.0, 14.0), "hit": 0.1}
    for loss, speed in (("0", 0.9), ("1%", 0.4)):
        for kind in ("cubic", "bbr"):
            yield f"congestion/congestion={kind},loss={loss}/relocator", {"speed": speed}
    for size in (32, 64):
        for system in ("relocator", "remote"):
            yield (
                f"size/size={size}M/{system}",
                {
                    "system": system,
                    "allocated_bytes": size // 2 << 20,
                },
            )
    for profile, rtt in (("lan", 0.0004), ("transpacific", 0.1)):
        for system in ("relocator", "remote"):
            yield f"profiles/profile={profile}/{system}", {"system": system, "rtt_s": rtt}
    for load in ("boot", "mail"):
        for system in ("relocator", "remote"):
            yield f"loads/load={load}/{system}", {"system": system}
    for clock in ("virtual", "real"):
        more = {"clock": clock, "slow": 1.5 if clock == "real" else 1.0}
        yield f"clocks/clock={clock}/relocator", more
    for system in ("stay", "relocator", "remote"):
        yield f"real/program=compile/{system}", {"system": system}
    yield "guest/rtt=20ms/relocator", {}
    yield "guest/rtt=20ms/mirror-sync", {"system": "mirror"}


def write(runs: Path, seeds: int = 1, only: str = "") -> None:
    """Writes the runs whose cell begins with `only`, and a failed one of the comparison."""
    for cell, more in cells():
        if cell.startswith(only):
            for seed in range(1, seeds + 1):
                write_run(runs / cell / f"s{seed}", Synthetic(**{**SHORT, **more, "seed": seed}))
    failed = Synthetic(**SHORT, system="nbdkit-cow", outcome="failed")
    write_run(runs / "compare" / "rtt=20ms,rate=100mbit" / "nbdkit-cow" / "s1", failed)
