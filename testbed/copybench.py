"""Relocating one disk by several systems over the same WAN: `python3 -m testbed.copybench`.

For every system: a fresh copy of the same image at the source, a server at the destination, and two
clients there, one reading 4 KiB at random, one writing whole blocks of 4 KiB, while the system
copies. The clients keep to a timetable (open loop): a slow answer doesn't make them ask less.

    local        no WAN: `nbdkit file` at the destination; what the store alone costs
    nbdcopy      nbdcopy to null, and no clients: the bulk ceiling
    ssh          `ssh -C` of the image to null, and no clients: see --content
    nbdkit-cow   nbdkit's cow filter with cow-on-read, and nbdcopy from it to null
    nbdkit-cow-all  the same, nbdcopy with --no-extents: reads holes, asks nothing beforehand
    qemu         qemu-storage-daemon: copy-on-read and block-stream into a qcow2 overlay
    relocator    proxy and target; `relocator-file`: the same with `nbdkit file` as the source;
                 `relocator-ssh`: with a source ssh://, which compresses
    standby      both clients at the source, for 30 s, while a proxy stands by; `ahead`: while it
                 copies ahead and keeps in step

They are the evaluation's systems (testbed/systems), and a few more (copysystems.py), without a
guest's device and file system. Peers copy from `nbdkit file`, which costs the source least. The
link is calibrated first and refused (status 3) when it is off. Results go to
LAB_OUT/copybench.json.
One virtual CPU serves all hosts; near a `cpu_share` of 1 it was measured, not the link.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed import copyclient, ending
from testbed.copyimage import CONTENTS, PIECE_BYTES, make_image
from testbed.copysystems import SYSTEMS, Bulk
from testbed.hosts import services
from testbed.hosts.supervise import Process, Supervisor
from testbed.network import calibrate, topology, wan
from testbed.network.topology import ADDRESS
from testbed.systems import Place, System, check, parse_settings
from testbed.systems.relocator import Relocator

EXIT_REFUSED = 3
SETTLED_S = 1.0  # from when on `link_use_settled` counts
STANDBY_ROUND_TRIPS = 25  # until what a system opens in advance is open
CLIENT_START_S = 2.0  # until both clients have started and wait
READ_SIZES = tuple(1 << power for power in range(12, 21))


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is measured; `proxy_options` are settings of the relocator."""

    profile: wan.LinkProfile
    systems: tuple[str, ...]
    data_bytes: int
    reads_per_s: float
    writes_per_s: float
    seed: int
    read_bytes: int = 4096
    proxy_options: dict[str, str] = field(default_factory=dict)
    content: str = "noise"


def cpu_times() -> tuple[float, float]:
    """(busy, all) seconds of the machine's CPUs since it started."""
    fields = [int(one) for one in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    ticks = os.sysconf("SC_CLK_TCK")
    return (sum(fields) - fields[3] - fields[4]) / ticks, sum(fields) / ticks


@dataclass(slots=True)
class Copy:
    """One system's copy, from its start to its end."""

    parameters: Parameters
    sites: topology.Sites
    work: Path
    supervisor: Supervisor
    clients: list[Process] = field(default_factory=list)

    def start_clients(self, interface: str) -> float:
        """Starts both clients of the disk that is served there; returns when they begin."""
        uri = f"nbd://{ADDRESS[interface]}:{services.PORT}"
        parameters = self.parameters
        start_s = time.monotonic() + CLIENT_START_S
        for kind, rate in (("read", parameters.reads_per_s), ("write", parameters.writes_per_s)):
            argv = [sys.executable, "-m", "testbed.copyclient", uri, kind, str(rate)]
            argv += [str(start_s), str(self.work / f"{kind}.log"), str(parameters.seed)]
            length = parameters.read_bytes if kind == "read" else copyclient.BLOCK_BYTES
            argv += [str(parameters.data_bytes), str(length)]
            at = self.sites.pids[interface.partition("-")[0]]
            self.clients.append(self.supervisor.start(f"client-{kind}", argv, at))
        return start_s

    def stop_clients(self) -> None:
        for client in self.clients:
            client.check()
            self.supervisor.stop(client, timeout_s=60)

    def latencies(self, kind: str, end_s: float) -> list[tuple[float, float]]:
        """(start, latency) of what was asked before the copy's end."""
        path = self.work / f"{kind}.log"
        pairs = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        found = [(float(start), float(latency)) for start, latency in pairs]
        return [one for one in found if one[0] <= end_s]


def sleep_until(at_s: float) -> None:
    time.sleep(max(0.0, at_s - time.monotonic()))


def measure(parameters: Parameters, sites: topology.Sites, name: str, work: Path) -> dict[str, Any]:
    """Copies once with the named system; returns its row."""
    image = work / "source.img"
    size_bytes = make_image(image, parameters.data_bytes, parameters.seed, parameters.content)
    allocated_bytes = image.stat().st_blocks * 512
    (work / "logs").mkdir()
    with Supervisor(work / "logs") as supervisor:
        system = _make(name, parameters, Place(supervisor, sites, work, image, size_bytes))
        system.start_source()
        system.prepare()
        time.sleep(STANDBY_ROUND_TRIPS * parameters.profile.rtt_s)
        system.hand_over()
        copy = Copy(parameters, sites, work, supervisor)
        start_s = time.monotonic()
        if not isinstance(system, Bulk):
            start_s = copy.start_clients(system.serves_at)
            sleep_until(start_s)
        before = topology.link_counters()["C"], cpu_times()
        copying_s = time.monotonic()
        settled: list[
            tuple[float, int]
        ] = []  # when slow start should be over, and bytes until then
        timer = threading.Timer(
            SETTLED_S,
            lambda: settled.append((time.monotonic(), topology.link_counters()["C"][0])),
        )
        timer.start()
        system.copy()
        end_s = time.monotonic()
        timer.cancel()
        after = topology.link_counters()["C"], cpu_times()
        copy.stop_clients()
        extra = system.status() or {}
    row = _row(parameters, copying_s, end_s, before, after)
    row["link_use_settled"] = (
        _use(parameters, settled[0], (end_s, after[0][0])) if settled else None
    )
    row["late_s"] = round(copying_s - start_s, 6)
    row["allocated_bytes"] = allocated_bytes
    row["wan_over_allocated"] = round(row["wan_bytes"] / allocated_bytes, 4)
    row["reads"] = copy.latencies("read", end_s)
    row["writes"] = copy.latencies("write", end_s)
    return row | {"status": extra}


def _make(name: str, parameters: Parameters, place: Place) -> System:
    kind, settings = SYSTEMS[name]
    further = parameters.proxy_options if issubclass(kind, Relocator) else {}
    return kind(settings | further, place)


Counters = tuple[tuple[int, int], tuple[float, float]]


def _row(
    parameters: Parameters, start_s: float, end_s: float, before: Counters, after: Counters
) -> dict[str, Any]:
    copy_s = end_s - start_s
    received = after[0][0] - before[0][0]
    busy_s, all_s = (after[1][index] - before[1][index] for index in (0, 1))
    return {
        "copy_s": round(copy_s, 6),
        "wan_bytes": received,
        "link_use": _use(parameters, (start_s, before[0][0]), (end_s, after[0][0])),
        "cpu_share": round(busy_s / all_s, 3) if all_s else None,
    }


def _use(parameters: Parameters, start: tuple[float, int], end: tuple[float, int]) -> float:
    """Bytes received between two moments over what the link carries after headers."""
    goodput_bits_per_s = parameters.profile.rate_bits_per_s * wan.TCP_HEADER_FACTOR
    return round((end[1] - start[1]) * 8 / (end[0] - start[0]) / goodput_bits_per_s, 4)


def run(parameters: Parameters) -> tuple[int, dict[str, Any]]:
    """Exit status and results."""
    services.prepare_kernel()
    profile = parameters.profile
    results: dict[str, Any] = {
        "clock": os.environ.get("LAB_CLOCK", "unknown"),
        "rtt_s": profile.rtt_s,
        "rate_bits_per_s": profile.rate_bits_per_s,
        "loss": profile.loss,
        "data_bytes": parameters.data_bytes,
        "content": parameters.content,
        "seed": parameters.seed,
        "read_bytes": parameters.read_bytes,
        "proxy_options": [f"{key}={value}" for key, value in parameters.proxy_options.items()],
        "systems": {},
    }
    with topology.sites(profile) as sites:
        found = calibrate.calibrate(profile, sites, calibrate.Tolerance())
        results["calibration"] = found.results()
        if found.problems:
            print(f"copybench: the link is off: {'; '.join(found.problems)}", file=sys.stderr)
            return EXIT_REFUSED, results
        for name in parameters.systems:
            with tempfile.TemporaryDirectory(prefix="copybench-") as work:
                row = measure(parameters, sites, name, Path(work))
                _keep_logs(name, Path(work))
            results["systems"][name] = row
            print(_line(name, row), flush=True)
    return 0, results


def _line(name: str, row: dict[str, Any]) -> str:
    """A row in short; latencies but for each client's first."""
    parts = [
        f"{name}: {row['copy_s']:.2f} s",
        f"link {row['link_use']:.1%}",
        f"later {row['link_use_settled'] or 0:.1%}",
        f"CPU {row['cpu_share']:.0%}",
        f"{row['wan_over_allocated']:.3f} x allocated",
    ]
    for kind in ("reads", "writes"):
        if len(found := [latency_s for _, latency_s in row[kind][1:]]) > 1:
            p99_s = statistics.quantiles(found, n=100, method="inclusive")[98]
            parts.append(f"{kind} p99 {p99_s * 1e3:.2f} ms")
    return ", ".join(parts)


def _keep_logs(name: str, work: Path) -> None:
    out = Path(os.environ.get("LAB_OUT", "out/copybench"))
    shutil.copytree(work / "logs", out / "logs" / name, dirs_exist_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="testbed.copybench", description=__doc__)
    parser.add_argument("--rtt", default="20ms")
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--loss", default="0", help="of packets, such as 1%% (0)")
    parser.add_argument("--systems", default="local,nbdcopy,nbdkit-cow,qemu,relocator")
    parser.add_argument("--data", default="64M", help="in the image (64M)")
    parser.add_argument("--content", choices=CONTENTS, default="noise", help="of it (noise)")
    parser.add_argument("--reads", type=float, default=25.0, help="a second (25)")
    parser.add_argument("--writes", type=float, default=10.0, help="a second (10)")
    parser.add_argument("--read-size", default="4K", help="of a read, a power of two (4K)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--proxy",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for our own proxy, such as window=16M or demand=shared; may be repeated",
    )
    return parser


def parse(argv: Sequence[str] | None) -> Parameters:
    """The command line, checked."""
    options = _parser().parse_args(argv)
    systems = tuple(options.systems.split(","))
    for name in systems:
        if name not in SYSTEMS:
            known = ", ".join(SYSTEMS)
            raise wan.ProfileError("systems", repr(name), f"must be among {known}")
    proxy_options = parse_settings(options.proxy)
    check(Relocator.name, proxy_options)
    data_bytes = wan.parse_size_bytes("data", options.data)
    if data_bytes < 2 * PIECE_BYTES or data_bytes % (2 * PIECE_BYTES):
        raise wan.ProfileError("data", options.data, "must be a multiple of 8M")
    profile = wan.LinkProfile(
        wan.parse_time_s("rtt", options.rtt),
        wan.parse_rate_bits_per_s("rate", options.rate),
        wan.parse_fraction("loss", options.loss),
    )
    read_bytes = wan.parse_size_bytes("read-size", options.read_size)
    if read_bytes not in READ_SIZES:
        raise wan.ProfileError("read-size", options.read_size, "must be a power of two, 4K to 1M")
    return Parameters(
        profile,
        systems,
        data_bytes,
        options.reads,
        options.writes,
        options.seed,
        read_bytes,
        proxy_options,
        options.content,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0 measured, 2 a wrong parameter, 3 the link was off."""
    ending.on_signals()
    try:
        parameters = parse(argv)
    except wan.ProfileError as error:
        print(f"copybench: {error}", file=sys.stderr)
        return 2
    status, results = run(parameters)
    out = Path(os.environ.get("LAB_OUT", "out/copybench"))
    out.mkdir(parents=True, exist_ok=True)
    (out / "copybench.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
