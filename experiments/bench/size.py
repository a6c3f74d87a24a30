"""The size of a disk: does 64 TiB cost more than 1 GiB?

The disks are sparse files served by `nbdkit file`, all hole. Where the work directory's file system
holds no file of such a size (ext4 ends at 16 TiB) the images are in /dev/shm; a proxy's maps never
are. Measured for each, in one run and in turns: seconds from starting the command to the first read
served, memory of the process then and after the reads, IOPS of random reads within the same region
(present: the copy has zeroed it, or the guest has written it). Then the guest writes all over the
proxies' disks, they are killed, and it is measured how soon they serve again, and with how much
memory. And then for 1 and 64 TiB with the background copy on: seconds until the disk is complete,
and the most memory that took.
"""

import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.bench import load
from experiments.bench.load import Load, unix_uri
from relocator.client import Client
from testbed.hosts import usage
from testbed.hosts.supervise import Process, ProcessError, Supervisor

SIZES_BYTES = (2**30, 2**40, 2**43, 2**46)
ALL_HOLE_BYTES = (2**40, 2**46)
SCATTERED_WRITES = 2000
_ROOMY = Path("/dev/shm")
LOADS = (load.LOADS[0], load.LOADS[2])
_COMPLETE_LIMIT_S = 300.0


def memory_mib(pid: int) -> dict[str, float]:
    """`rss_mib`, `peak_mib` and `anonymous_mib` of a process, see `usage.parse_memory_kib`."""
    return {f"{key}_mib": round(kib / 1024, 1) for key, kib in usage.memory_kib(pid).items()}


@dataclass(frozen=True, slots=True)
class Served:
    """A started command and what its start cost."""

    process: Process
    uri: str
    client: Client
    first_read_s: float
    again: Callable[[], "Served"]


def start(supervisor: Supervisor, work: Path, name: str, *arguments: object) -> Served:
    """Starts one of ours and reads from it as soon as it can be read."""
    import nbd

    socket, control = work / f"{name}.nbd", work / f"{name}.control"
    argv = [sys.executable, "-m", "relocator.cli.main", *(str(one) for one in arguments)]
    argv += ["--socket", str(socket), "--control", str(control)]
    socket.unlink(missing_ok=True)  # of a process that was killed
    handle = nbd.NBD()

    def connected() -> bool:
        with suppress(nbd.Error):
            handle.connect_unix(str(socket))
        return bool(handle.aio_is_ready())

    start_s = time.monotonic()
    process = supervisor.start(name, argv)
    process.wait_until(socket.exists, f"{name}'s socket")
    process.wait_until(connected, f"{name}'s answer")
    handle.pread(4096, 0)
    first_read_s = time.monotonic() - start_s
    handle.shutdown()

    def again() -> Served:
        supervisor.cut_off(process)
        return start(supervisor, work, name, *arguments)

    return Served(process, unix_uri(socket), Client(control), first_read_s, again)


def _sparse(directories: Sequence[Path], name: str, size_bytes: int) -> Path:
    """A sparse file in the first directory whose file system holds one of that size."""
    for directory in directories:
        path = directory / name
        with path.open("wb") as file, suppress(OSError):
            file.truncate(size_bytes)
            return path
        path.unlink()
    where = " and ".join(str(directory) for directory in directories)
    raise ProcessError(f"no file of {size_bytes} bytes can be made in {where}")


def _start_pair(
    supervisor: Supervisor, work: Path, roomy: Path, size_bytes: int
) -> dict[str, Served]:
    """Target and proxy of a sparse disk of that size; the proxy's background copy is off."""
    label = f"{size_bytes // 2**30}G"
    image, own, copy = (
        _sparse((work, roomy), f"{label}-{role}.img", size_bytes)
        for role in ("source", "target", "copy")
    )
    source = work / f"{label}.nbd"
    process = supervisor.start(label, ["nbdkit", "-f", "-U", str(source), "file", str(image)])
    process.wait_until(source.exists, "the source's socket")
    options = ["--disk", copy, "--background", "off", "--order", "sequential"]
    store = work / f"{label}-store"
    uri = unix_uri(source)
    return {
        "target": start(supervisor, work, f"target-{label}", "target", own),
        "proxy": start(supervisor, work, f"proxy-{label}", "proxy", store, uri, *options),
    }


def _killed(served: Served, store: Path) -> tuple[Served, dict[str, float]]:
    """A proxy that was written to all over its disk and killed, started again; what it is like."""
    import nbd

    handle = nbd.NBD()
    handle.connect_uri(served.uri)
    choose = random.Random(SCATTERED_WRITES)
    for _ in range(SCATTERED_WRITES):
        handle.pwrite(choose.randbytes(4096), choose.randrange(handle.get_size() // 4096) * 4096)
    handle.shutdown()
    written = memory_mib(served.process.pid)
    maps_bytes = sum(path.stat().st_blocks * 512 for path in store.glob("map.*"))
    again = served.again()
    return again, {
        "written_peak_mib": written["peak_mib"],
        "maps_mib": round(maps_bytes / 2**20, 1),
        "block_kib": again.client.call("status")["block_bytes"] / 2**10,
        "again_s": again.first_read_s,
        "again_peak_mib": memory_mib(again.process.pid)["peak_mib"],
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
    roomy = Path(tempfile.mkdtemp(prefix="bench-size-", dir=_ROOMY))
    try:
        return _run(seconds, rounds, work, roomy, console)
    finally:
        shutil.rmtree(roomy)


def _run(seconds: float, rounds: int, work: Path, roomy: Path, console: Console) -> dict[str, Any]:
    results: dict[str, Any] = {"clock": "real", "rows": {}}
    with Supervisor(work / "logs") as supervisor:
        pairs = {size: _start_pair(supervisor, work, roomy, size) for size in SIZES_BYTES}
        for size, pair in pairs.items():
            for role, served in pair.items():
                row = {"first_read_s": served.first_read_s, **memory_mib(served.process.pid)}
                results["rows"][f"{role}, {_named(size)}"] = row
                load.fill(served.uri)
        for one in LOADS:
            for role in ("target", "proxy"):
                console.print(f"size: {role}, {one.name}", style="dim")
                for size, values in _in_turns(pairs, role, one, seconds, rounds).items():
                    results["rows"][f"{role}, {_named(size)}"][one.name] = values
        for size, pair in pairs.items():
            for role, served in pair.items():
                after = memory_mib(served.process.pid)
                results["rows"][f"{role}, {_named(size)}"]["after"] = after
        console.print("size: written to all over, and killed", style="dim")
        for size, pair in pairs.items():
            store = work / f"{size // 2**30}G-store"
            pair["proxy"], row = _killed(pair["proxy"], store)
            results["rows"][f"proxy, {_named(size)}"] |= row
        results["all_hole"] = {}
        for size in ALL_HOLE_BYTES:
            console.print(f"size: {_named(size)} of holes, background on", style="dim")
            results["all_hole"][_named(size)] = _complete(pairs[size]["proxy"])
    return results


def _named(size_bytes: int) -> str:
    return f"{size_bytes >> 40} TiB" if size_bytes >> 40 else f"{size_bytes >> 30} GiB"


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
    head += [
        "block KiB",
        "maps MiB",
        "written all over: peak MiB",
        "killed: first read s (peak MiB)",
    ]
    body = [
        [
            name,
            f"{row['first_read_s']:.2f}",
            f"{row['rss_mib']:.0f}",
            f"{row['after']['rss_mib']:.0f} ({row['after']['peak_mib']:.0f})",
            f"{row['after']['anonymous_mib']:.0f}",
            *(f"{row[one.name]:,.0f}" for one in LOADS),
            *_of_killed(row),
        ]
        for name, row in results["rows"].items()
    ]
    for size, last in results["all_hole"].items():
        text = f"{last['rss_mib']:.0f} ({last['peak_mib']:.0f})"
        name = f"proxy, all-hole {size} complete in {last['complete_s']:.1f} s"
        body.append([name, "", "", text, f"{last['anonymous_mib']:.0f}", *[""] * (len(LOADS) + 4)])
    return head, body


def _of_killed(row: dict[str, Any]) -> list[str]:
    if "again_s" not in row:
        return [""] * 4
    sizes = [row[name] for name in ("block_kib", "maps_mib", "written_peak_mib")]
    again = f"{row['again_s']:.2f} ({row['again_peak_mib']:.0f})"
    return [*(f"{size:.0f}" for size in sizes), again]
