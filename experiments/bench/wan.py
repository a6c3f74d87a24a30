"""The WAN path: one boot of the lab for each link, two boots at a time.

The runs are on the virtual clock, where how busy the machine is doesn't show; see
`testbed.copybench` for what one does. Here they are started, ended with us, and put into a table.

A read that waited for the WAN is told by its latency, half a round trip or more: which block was
absent only the system under test could say, and not all do. At RTT 0 that is not told apart.

The first request of each client is kept apart: it pays for the client's own start (8 to 14 ms of
the one virtual CPU, also where nothing is copied), and a first read finds idle connections.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.bench.tables import cell, quantile
from testbed.hosts.supervise import Process, ProcessError, Supervisor

Link = tuple[str, str]
LINKS: tuple[Link, ...] = tuple(
    (rtt, rate) for rate in ("100mbit", "1gbit") for rtt in ("0ms", "20ms", "100ms", "200ms")
)
QUICK: tuple[Link, ...] = (("20ms", "100mbit"), ("100ms", "100mbit"))
SYSTEMS = "local,nbdcopy,nbdkit-cow,nbdkit-cow-all,qemu,relocator,relocator-file"
#: Random data in the image: 11 s at 100 Mbit/s and 0.6 at 1 Gbit/s, which is mostly start-up.
DATA = {"100mbit": "128M", "1gbit": "64M"}
AT_ONCE = 2
CPU_BOUND = 0.8
_TIMEOUT_S = 7200.0  # of a machine that does other things too

HEAD = [
    *("link, system", "copy s", "link use", "CPU", "WAN / allocated"),
    *("absent n", "absent p50 ms", "p99", "p99.9"),
    *("all reads p50 ms", "p99", "first", "write p99 ms"),
]
_LAST_COLUMNS = ("read_p50_s", "read_p99_s", "first_read_s", "write_p99_s")


def _command(link: Link, out: Path) -> list[str]:
    lab = [sys.executable, "-m", "testbed.lab", "run", "--timeout", str(_TIMEOUT_S)]
    copies = ["testbed.copybench", "--rtt", link[0], "--rate", link[1], "--data", DATA[link[1]]]
    return [*lab, "--out", str(out), "--", *copies, "--systems", SYSTEMS]


def _name(link: Link) -> str:
    return "-".join(link)


def run(links: Sequence[Link], out: Path, reuse: bool, console: Console) -> dict[str, Any]:
    """Runs what is to be run; returns what wan.json holds."""
    missing = [one for one in links if not (reuse and _result(one, out).exists())]
    with tempfile.TemporaryDirectory(prefix="bench-") as logs, ExitStack() as stack:
        supervisor = stack.enter_context(Supervisor(Path(logs)))
        running: list[tuple[Link, Process]] = []
        for link in missing:
            if len(running) == AT_ONCE:
                _finish(supervisor, *running.pop(0))
            console.print(f"wan: RTT {link[0]}, {link[1]}", style="dim")
            running.append((link, supervisor.start(_name(link), _command(link, out / _name(link)))))
        for link, process in running:
            _finish(supervisor, link, process)
    return {"links": {_name(link): json.loads(_result(link, out).read_text()) for link in links}}


def _result(link: Link, out: Path) -> Path:
    return out / _name(link) / "copybench.json"


def _finish(supervisor: Supervisor, link: Link, process: Process) -> None:
    try:
        supervisor.wait(process, _TIMEOUT_S + 60)
    except (ProcessError, subprocess.SubprocessError) as error:
        raise ProcessError(f"the run with RTT {link[0]}, {link[1]} failed: {error}") from error


def summary(row: dict[str, Any], rtt_s: float) -> dict[str, float | int | None]:
    """Latencies in seconds of one system's copy."""
    first, *reads = [latency_s for _, latency_s in sorted(row["reads"])] or [None]
    writes = [latency_s for _, latency_s in sorted(row["writes"])][1:]
    absent = [one for one in reads if one >= rtt_s / 2] if rtt_s else []
    return {
        "absent": len(absent),
        "absent_p50_s": quantile(absent, 0.5),
        "absent_p99_s": quantile(absent, 0.99),
        "absent_p999_s": quantile(absent, 0.999),
        "read_p50_s": quantile(reads, 0.5),
        "read_p99_s": quantile(reads, 0.99),
        "first_read_s": first,
        "write_p99_s": quantile(writes, 0.99),
    }


def rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    return HEAD, list(_rows(results))


def _rows(results: dict[str, Any]) -> Iterator[list[str]]:
    for name, link in results["links"].items():
        rtt, rate = name.split("-")
        for system, row in link["systems"].items():
            found = summary(row, link["rtt_s"])
            local = system == "local"
            share = row["cpu_share"]
            yield [
                f"{rtt.removesuffix('ms')} ms, {rate}, {system}",
                "-" if local else cell(row["copy_s"], 1, 2),
                "-" if local else f"{row['link_use']:.0%}",
                "-" if share is None else f"{share:.0%}{'!' if share >= CPU_BOUND else ''}",
                "-" if local else cell(row["wan_over_allocated"], 1, 3),
                str(found["absent"]) if found["absent"] else "-",
                *(cell(found[f"absent_{one}_s"], 1e3) for one in ("p50", "p99", "p999")),
                *(cell(found[key], 1e3) for key in _LAST_COLUMNS),
            ]
