"""Copies over the WAN, with a client that reads and one that writes: what a guest feels and pays.

Each copy has sites and servers of its own kind (testbed/copybench.py) on its own link. What is left
are the measurements of each: seconds, bytes on the link, the clients' latencies, what the servers
used of the processor meanwhile, and of memory in the end.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relocator.client import Client
from testbed.copybench import STANDBY_ROUND_TRIPS, Copy, Parameters, sleep_until
from testbed.copyimage import make_image
from testbed.gauge.pair import to_the_grid
from testbed.hosts import usage
from testbed.hosts.supervise import Process, Supervisor
from testbed.network import topology, wan
from testbed.systems import Place
from testbed.systems.relocator import Relocator

DATA_BYTES = 16 << 20
WRITES_PER_S = 25.0


@dataclass(frozen=True, slots=True)
class Link:
    """A link, and what is done over it: as many reads a second as eight threads can wait for."""

    profile: wan.LinkProfile
    reads_per_s: float
    seeds: tuple[int, ...]


LINKS = {
    "near": Link(wan.LinkProfile(0.020, 100_000_000), 200.0, (1,)),
    "far": Link(wan.LinkProfile(0.100, 50_000_000), 60.0, (1,)),
}


def measure(work: Path) -> dict[str, Any]:
    """{link: its copies, in order}."""
    results: dict[str, Any] = {}
    with topology.sites(LINKS["near"].profile) as sites:
        for name, link in LINKS.items():
            wan.set_link(link.profile, topology.WAN_PORTS)
            results[name] = {"rtt_s": link.profile.rtt_s, "copies": []}
            for seed in link.seeds:
                place = work / f"{name}-{seed}"
                place.mkdir()
                results[name]["copies"].append(_copy(link, sites, place, seed))
                print(f"copies: {name} {seed}", flush=True)
    return results


def _copy(link: Link, sites: topology.Sites, work: Path, seed: int) -> dict[str, Any]:
    rates = link.reads_per_s, WRITES_PER_S
    parameters = Parameters(link.profile, (), DATA_BYTES, *rates, seed)
    image = work / "source.img"
    size_bytes = make_image(image, DATA_BYTES, seed)
    (work / "logs").mkdir()
    with Supervisor(work / "logs") as supervisor:
        system = Relocator({}, Place(supervisor, sites, work, image, size_bytes))
        system.start_source()
        system.prepare()
        time.sleep(STANDBY_ROUND_TRIPS * link.profile.rtt_s)
        target, proxy = supervisor.processes
        source = Client(work / "target.sock")
        to_the_grid()
        activate_s = time.monotonic()
        system.hand_over()
        activate_s = time.monotonic() - activate_s
        copy = Copy(parameters, sites, work, supervisor)
        to_the_grid()
        start_s = copy.start_clients(system.serves_at)
        sleep_until(start_s)
        before = _used(target, proxy), topology.link_counters()["C"]
        asked = _asked(source)
        copying_s = time.monotonic()
        system.copy()
        end_s = time.monotonic()
        after = _used(target, proxy), topology.link_counters()["C"]
        asked = _asked(source) - asked
        copy.stop_clients()
        memory = {"target": usage.memory_kib(target.pid), "proxy": usage.memory_kib(proxy.pid)}
    return {
        "activate_s": activate_s,
        "copy_s": end_s - copying_s,
        "allocated_bytes": image.stat().st_blocks * 512,
        "received_bytes": after[1][0] - before[1][0],
        "sent_bytes": after[1][1] - before[1][1],
        "source_requests": asked,
        "target_ns": after[0][0] - before[0][0],
        "proxy_ns": after[0][1] - before[0][1],
        "memory": memory,
        "reads": copy.latencies("read", end_s),
        "writes": copy.latencies("write", end_s),
    }


def _used(target: Process, proxy: Process) -> tuple[int, int]:
    return usage.processor_ns(target.pid), usage.processor_ns(proxy.pid)


def _asked(source: Client) -> int:
    """How many reads the source has answered."""
    return sum(
        kind["count"] for name, kind in source.call("status")["requests"].items() if "read" in name
    )
