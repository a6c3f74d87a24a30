"""The size of a disk: does 1 TiB cost more than 1 GiB?

Both disks are sparse files served by `nbdkit file`, all hole. Measured for each, in one run and in
turns: seconds from starting the command to the first read served, memory of the process then and
after the reads, IOPS of random reads within the same region (present: the copy has zeroed it, or
the guest has written it). And for 1 TiB with the background copy on: seconds until the disk is
complete, and the most memory that took.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.bench import load
from experiments.bench.load import Load, unix_uri
from relocator.client import Client
from testbed.hosts.supervise import Process, Supervisor

SMALL_BYTES = 2**30
LARGE_BYTES = 2**40
LOADS = (load.LOADS[0], load.LOADS[2])
_COMPLETE_LIMIT_S = 300.0


def memory_mib(pid: int) -> dict[str, float]:
    """What a process holds, see `parse_memory`."""
    return parse_memory(Path(f"/proc/{pid}/status").read_text())


def parse_memory(status: str) -> dict[str, float]:
    """`rss_mib`, its peak, and how much of it is not file pages, from the text of /proc/PID/status.

    File pages (`rss_mib` less `anonymous_mib`) are page cache that the process has mapped: the
    kernel takes them back when it needs them.
    """
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    names = {"rss_mib": "VmRSS", "peak_mib": "VmHWM", "anonymous_mib": "RssAnon"}
    return {key: round(int(fields[name].split()[0]) / 1024, 1) for key, name in names.items()}


@dataclass(frozen=True, slots=True)
class Served:
    """A started command and what its start cost."""

    process: Process
    uri: str
    client: Client
    first_read_s: float


def start(supervisor: Supervisor, work: Path, name: str, *arguments: object) -> Served:
    """Starts one of ours and reads from it as soon as it can be read."""
    import nbd

    socket, control = work / f"{name}.nbd", work / f"{name}.control"
    argv = [sys.executable, "-m", "relocator.cli.main", *(str(one) for one in arguments)]
    argv += ["--socket", str(socket), "--control", str(control)]
    start_s = time.monotonic()
    process = supervisor.start(name, argv)
    process.wait_until(socket.exists, f"{name}'s socket")
    handle = nbd.NBD()
    handle.connect_unix(str(socket))
    handle.pread(4096, 0)
    first_read_s = time.monotonic() - start_s
    handle.shutdown()
    return Served(process, unix_uri(socket), Client(control), first_read_s)


def _start_pair(supervisor: Supervisor, work: Path, size_bytes: int) -> dict[str, Served]:
    """Target and proxy of a sparse disk of that size; the proxy's background copy is off."""
    label = f"{size_bytes // 2**30}G"
    image = work / f"{label}.img"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    source = work / f"{label}.nbd"
    process = supervisor.start(label, ["nbdkit", "-f", "-U", str(source), "file", str(image)])
    process.wait_until(source.exists, "the source's socket")
    own = work / f"{label}-target.img"
    with own.open("wb") as file:
        file.truncate(size_bytes)
    options = ["--background", "off", "--order", "sequential"]
    store = work / f"{label}-store"
    uri = unix_uri(source)
    return {
        "target": start(supervisor, work, f"target-{label}", "target", own),
        "proxy": start(supervisor, work, f"proxy-{label}", "proxy", store, uri, *options),
    }


def _iops(one: Load, uri: str, seconds: float, number: int) -> float:
    return load.measure(one, uri, seconds, seed=number + 1).iops


def _complete(served: Served) -> dict[str, float]:
    """Background on: seconds until all of an all-hole disk is here."""
    start_s = time.monotonic()
    served.client.call("set", background="on")
    served.client.call("wait", patience_s=_COMPLETE_LIMIT_S)
    copy_s = time.monotonic() - start_s
    return {"complete_s": round(copy_s, 3), **memory_mib(served.process.pid)}


def run(seconds: float, rounds: int, work: Path, console: Console) -> dict[str, Any]:
    """Everything; returns what size.json holds."""
    (work / "logs").mkdir()
    results: dict[str, Any] = {"clock": "real", "rows": {}}
    with Supervisor(work / "logs") as supervisor:
        pairs = {size: _start_pair(supervisor, work, size) for size in (SMALL_BYTES, LARGE_BYTES)}
        for size, pair in pairs.items():
            for role, served in pair.items():
                row = {"first_read_s": served.first_read_s, **memory_mib(served.process.pid)}
                results["rows"][f"{role}, {size // 2**30} GiB"] = row
                load.fill(served.uri)
        for one in LOADS:
            for role in ("target", "proxy"):
                console.print(f"size: {role}, {one.name}", style="dim")
                for size, values in _in_turns(pairs, role, one, seconds, rounds).items():
                    results["rows"][f"{role}, {size // 2**30} GiB"][one.name] = values
        for size, pair in pairs.items():
            for role, served in pair.items():
                after = memory_mib(served.process.pid)
                results["rows"][f"{role}, {size // 2**30} GiB"]["after"] = after
        console.print("size: an all-hole disk of 1 TiB, background on", style="dim")
        results["all_hole"] = _complete(pairs[LARGE_BYTES]["proxy"])
    return results


def _in_turns(
    pairs: dict[int, dict[str, Served]], role: str, one: Load, seconds: float, rounds: int
) -> dict[int, float]:
    """{size: median IOPS}."""
    found: dict[int, list[float]] = {size: [] for size in pairs}
    for number in range(rounds):
        for size, pair in pairs.items():
            found[size].append(_iops(one, pair[role].uri, seconds, number))
    return {size: statistics.median(values) for size, values in found.items()}


def rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = ["disk", "first read s", "memory MiB: start", "after (peak)", "anonymous"]
    head += [f"IOPS {one.name}" for one in LOADS]
    body = [
        [
            name,
            f"{row['first_read_s']:.2f}",
            f"{row['rss_mib']:.0f}",
            f"{row['after']['rss_mib']:.0f} ({row['after']['peak_mib']:.0f})",
            f"{row['after']['anonymous_mib']:.0f}",
            *(f"{row[one.name]:,.0f}" for one in LOADS),
        ]
        for name, row in results["rows"].items()
    ]
    last = results["all_hole"]
    text = f"{last['rss_mib']:.0f} ({last['peak_mib']:.0f})"
    name = f"proxy, all-hole 1 TiB complete in {last['complete_s']:.1f} s"
    body.append([name, "", "", text, f"{last['anonymous_mib']:.0f}", "", ""])
    return head, body
