"""One relocation, filmed: `python3 -m testbed.film`, in the lab.

A disk is copied over a WAN while one client reads and one writes; the link is cut for a while in
the middle. Ten times a second the proxy is asked which parts of the disk are present and which were
written. LAB_OUT/film.json has the pictures, the clients' latencies and what happened when
(seconds since the VM came); experiments/publishing/animation.py draws them.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from relocator.client import Client
from testbed import copybench, copyimage, ending
from testbed.copybench import Copy, Parameters
from testbed.hosts import services
from testbed.hosts.supervise import Supervisor
from testbed.network import link_events, topology, wan
from testbed.network.topology import ADDRESS
from testbed.systems import Place
from testbed.systems.relocator import Relocator

CELLS = 1200
EVERY_S = 0.1
AFTER_S = 1.0  # it is watched so long after the last block has arrived
PARAMETERS = Parameters(
    profile=wan.LinkProfile(0.02, 20e6),
    systems=("relocator",),
    data_bytes=24 << 20,
    reads_per_s=40.0,
    writes_per_s=10.0,
    seed=1,
)
CUT = link_events.LinkEvent(3.0, "cut", 2.0)


class Log:
    """What happened to the link, on the film's clock."""

    def __init__(self) -> None:
        self.zero_s = 0.0
        self.events: list[dict[str, Any]] = []

    def event(self, name: str, /, **fields: Any) -> float:
        at_s = time.monotonic() - self.zero_s
        self.events.append({"at_s": round(at_s, 6), "name": name, **fields})
        return at_s


def film(sites: topology.Sites, work: Path) -> dict[str, Any]:
    """Everything from the moment when the VM comes until all is here."""
    image, log = work / "source.img", Log()
    size_bytes = copyimage.make_image(image, PARAMETERS.data_bytes, PARAMETERS.seed)
    (work / "logs").mkdir()
    with Supervisor(work / "logs") as supervisor:
        system = Relocator({}, Place(supervisor, sites, work, image, size_bytes))
        system.start_source()
        system.prepare()
        system.hand_over()
        copy = Copy(PARAMETERS, sites, work, supervisor)
        log.zero_s = copy.start_clients(f"nbd://{ADDRESS[system.serves_at]}:{services.PORT}")
        steps = link_events.steps([CUT], PARAMETERS.profile)
        copybench.sleep_until(log.zero_s)
        with link_events.Schedule(steps, topology.WAN_PORTS, log) as schedule:
            schedule.start(log.zero_s)
            pictures = _watch(Client(work / "proxy.sock"), log)
        copy.stop_clients()
    end_s = time.monotonic()
    latencies = {
        kind: [(round(at - log.zero_s, 6), latency) for at, latency in copy.latencies(kind, end_s)]
        for kind in ("read", "write")
    }
    profile = {
        "rtt_s": PARAMETERS.profile.rtt_s,
        "rate_bits_per_s": PARAMETERS.profile.rate_bits_per_s,
    }
    return {"link": profile, "pictures": pictures, "events": log.events, "latencies_s": latencies}


def _watch(client: Client, log: Log) -> list[dict[str, Any]]:
    client.call("set", background="on")
    pictures: list[dict[str, Any]] = []
    complete_s: float | None = None
    while complete_s is None or time.monotonic() < complete_s + AFTER_S:
        copybench.sleep_until(log.zero_s + len(pictures) * EVERY_S)
        answer = client.call("map", cells=CELLS)
        seen = {name: answer["map"][name] for name in ("present", "dirty")}
        pictures.append({"at_s": round(time.monotonic() - log.zero_s, 6), **seen})
        if complete_s is None and answer["state"] == "complete":
            complete_s = time.monotonic()
            log.event("complete")
    return pictures


def main() -> int:
    ending.on_signals()
    services.prepare_kernel()
    with topology.sites(PARAMETERS.profile) as sites, tempfile.TemporaryDirectory() as work:
        found = film(sites, Path(work))
    out = Path(os.environ.get("LAB_OUT", "out/film"))
    out.mkdir(parents=True, exist_ok=True)
    (out / "film.json").write_text(json.dumps(found, sort_keys=True) + "\n")
    print(f"film: {len(found['pictures'])} pictures", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
