"""What test_workloads runs in the lab: `python3 -m tests.lab.workloads_inside TASK`.

Results go to LAB_OUT as JSON; the test judges them.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from testbed.hosts import services
from testbed.hosts.supervise import Supervisor, in_namespace, run
from testbed.migration import disk
from testbed.network import link_events, topology, wan
from testbed.workloads import postgres, suite

MIB = 2**20
WORK_S = 5.0
SEED = 3
FIO = ("zipf", "skewed", "sequential", "mixed", "mail", "boot")
LOADS = (
    *("ledger", "mixed", "compile", "sqlite", "sqlite:delete", "postgres", "git"),
    *(f"fio:experiments/fio/{name}.fio" for name in FIO),
)
LAYOUTS = (("ext2", "none"), ("ext3", "mbr"), ("ext4", "gpt"))


def _busy_s() -> float:
    """Seconds in which the processor was not idle, since the boot."""
    fields = [int(part) for part in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def _try_load(words: str, work: Path) -> dict[str, Any]:
    """Makes a disk for the workloads, lets them run for a while, collects and judges them."""
    workloads = suite.parse(words, suite.Settings(compile_period_s=2, git_period_s=2))
    image, mount, logs = work / "disk.img", work / "mount", work / "logs"
    logs.mkdir()
    size_bytes = 20 * MIB + suite.room(workloads).size_bytes
    start_s = time.monotonic()
    contents = disk.make(image, mount, disk.Wanted(size_bytes, 6 * MIB), workloads, SEED)
    prepared_s = time.monotonic() - start_s
    with services.mounted(image, mount, "loop,noatime"):
        with Supervisor(logs) as supervisor:
            start_s, start_busy_s = time.monotonic(), _busy_s()
            for workload in workloads:
                workload.start(suite.Guest(supervisor, mount, logs, SEED))
            time.sleep(max(0.0, start_s + WORK_S - time.monotonic()))
            supervisor.check()
            busy = (_busy_s() - start_busy_s) / (time.monotonic() - start_s)
        used_bytes = (os.statvfs(mount).f_blocks - os.statvfs(mount).f_bfree) * 4096
        changed = disk.mismatches_after_drop(mount, contents)
    done = suite.collect(workloads, logs)
    with services.mounted(image, mount, "loop,ro"):
        problems = {one.name: one.check(mount, logs).problems for one in workloads}
    fsck = run(["e2fsck", "-fn", str(image)])
    span = [io.time_s - start_s for io in done.ios]
    return {
        "prepared_s": round(prepared_s, 3),
        "busy": round(busy, 3),
        "used_bytes": used_bytes,
        "changed": changed,
        "problems": problems,
        "clean": "clean" in fsck or "files (" in fsck,
        "ios": dict(sorted(Counter(io.kind for io in done.ios).items())),
        "work": dict(sorted(Counter(unit.kind for unit in done.work).items())),
        "span_s": [round(min(span), 3), round(max(span), 3)],
    }


def loads() -> int:
    """Every workload by itself, on a plain loop-mounted file system."""
    run(["modprobe", "-a", "loop", "ext4"])
    found = {}
    for words in LOADS:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
            found[words] = _try_load(words, Path(work))
        print(words, json.dumps(found[words]))
    (Path(os.environ["LAB_OUT"]) / "loads.json").write_text(json.dumps(found, indent=1))
    return 0


def bank() -> int:
    """PostgreSQL's bank, which its server left as it fell, after what may become of it."""
    found = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        mount, logs = Path(directory) / "mount", Path(directory)
        mount.mkdir()
        workload = suite.parse("postgres", suite.Settings())[-1]
        workload.prepare(mount, SEED)
        with Supervisor(logs) as supervisor:
            workload.start(suite.Guest(supervisor, mount, logs, SEED))
            time.sleep(WORK_S)
        (log,) = logs.glob("postgres.[0-9]*")
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join([*lines, *lines]))
        found["twice as many acknowledged"] = workload.check(mount, logs).problems
        log.write_text("".join(lines))
        files = (mount / postgres.DIRECTORY / "base").rglob("*")
        with max(files, key=lambda path: path.stat().st_size).open("r+b") as accounts:
            for page in range(800, 804):  # one may stand in the server's log, and is then restored
                accounts.seek(page * 8192 + 100)
                accounts.write(b"damage")
        found["a page is damaged"] = workload.check(mount, logs).problems
        shutil.rmtree(mount / postgres.DIRECTORY / "pg_wal")
        found["its log is lost"] = workload.check(mount, logs).problems
    (Path(os.environ["LAB_OUT"]) / "bank.json").write_text(json.dumps(found, indent=1))
    return 0


def layouts() -> int:
    """File systems in partitions, as the image's loop and as the guest's device see them."""
    services.prepare_kernel()
    found = {}
    workloads = suite.parse("", suite.Settings())
    for file_system, partition in LAYOUTS:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, ExitStack() as stack:
            work = Path(directory)
            image, mount = work / "disk.img", work / "mount"
            wanted = disk.Wanted(32 * MIB, 6 * MIB, file_system, partition)
            contents = disk.make(image, mount, wanted, workloads, SEED)
            servers = stack.enter_context(Supervisor(work))
            command = services.file_command(image, "127.0.0.1", services.PORT)
            services.start_server(servers, "file", command, os.getpid())
            nbd = services.attach(servers, Path("/dev/nbd0"), "127.0.0.1", os.getpid())
            device = services.GuestDevice(contents.offset_bytes)
            device.create(nbd)
            with services.mounted(device.path, mount, "noatime", file_system):
                mounts = Path("/proc/mounts").read_text().splitlines()
                changed = disk.mismatches_after_drop(mount, contents)
            device.remove()
            services.detach(servers, nbd)
            kind = next(line.split()[2] for line in mounts if str(mount) in line)
            table = run(["sfdisk", "--dump", str(image)]) if contents.offset_bytes else ""
            found[f"{file_system} {partition}"] = [kind, changed, table]
    (Path(os.environ["LAB_OUT"]) / "layouts.json").write_text(json.dumps(found, indent=1))
    return 0


class _Events:
    def __init__(self) -> None:
        self.names: list[str] = []

    def event(self, name: str, /, **fields: Any) -> float:
        self.names.append(f"{name} {fields}")
        return time.monotonic()


def link() -> int:
    """A link that is cut, mended and made slower while pings go over it."""
    services.prepare_kernel()
    profile = wan.LinkProfile(rtt_s=0.02, rate_bits_per_s=10**8, congestion="bbr")
    events = [link_events.parse(text) for text in ("2s:cut:2s", "6s:rate:1mbit", "6s:rtt:100ms")]
    log = _Events()
    with topology.sites(profile) as sites:
        pid = sites.pids["st_dst"]
        path = Path("/proc/sys/net/ipv4/tcp_congestion_control")
        controls = [in_namespace(each, path.read_text).strip() for each in sites.pids.values()]
        ping = ["ping", "-n", "-D", "-c", "100", "-i", "0.1", "-s", "1000", "-W", "1"]
        steps = link_events.steps(events, profile)
        with link_events.Schedule(steps, topology.WAN_PORTS, log) as schedule:
            schedule.start(time.monotonic())
            text = run([*ping, topology.ADDRESS["st_src-wan"]], namespace_pid=pid)
            schedule.check()
            done = schedule.done()
    answers = [
        [int(line.split("icmp_seq=")[1].split()[0]), float(line.split("time=")[1].split()[0])]
        for line in text.splitlines()
        if "time=" in line
    ]
    found = {"answers": answers, "done": done, "events": log.names, "congestion": controls}
    (Path(os.environ["LAB_OUT"]) / "link.json").write_text(json.dumps(found, indent=1))
    return 0


TASKS: dict[str, Callable[[], int]] = {
    "loads": loads,
    "bank": bank,
    "layouts": layouts,
    "link": link,
}

if __name__ == "__main__":
    sys.exit(TASKS[sys.argv[1]]())
