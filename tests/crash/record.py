"""Runs in the lab: a proxy at work on a store whose disk logs every write. See power.py.

    python3 -m tests.crash.record FS SIZE_MIB REQUESTS SEED

The store (image, maps, meta.json) is made on a fresh file system on dm-log-writes. At first clients
write at the source, and the proxy keeps in step, round by round. Then the disk is taken over, with
what the seal brings, and they write at the proxy. Meanwhile the background copy runs and takes some
blocks from a seed. In either part the proxy is killed once and started again in the middle, so that
what a live map carried over is in the log as well. LAB_OUT gets the log, the trace and the facts
that the replay needs.
"""

import ctypes
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbd

from relocator.client import Client as Control
from relocator.store.maps import boot_id
from testbed.hosts.services import PLUGIN
from testbed.hosts.supervise import Supervisor, run
from tests.crash.clients import Client, Ledger, regions
from tests.support.servers import await_copy, hurry
from tests.support.stamps import make_seed, make_source

NAME = "logged"
CLIENTS = 3
#: how much of the work is done before the switch
AWAY = 0.4
FILE_SYSTEMS = {
    "ext4": ["-q", "-F", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,nodiscard"],
    "ext3": ["-q", "-F", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,nodiscard"],
}


def loop_device(path: Path, size_mib: int) -> str:
    with path.open("wb") as file:
        file.truncate(size_mib << 20)
    return run(["losetup", "--find", "--show", str(path)]).strip()


def mark(text: str) -> None:
    run(["dmsetup", "message", NAME, "0", "mark", text])


class Recording:
    """The servers, and the clients at work."""

    def __init__(self, out: Path, size_mib: int, requests: int, seed: int) -> None:
        self.out = out
        self.work = Path("/tmp/power")
        self.store = self.work / "mounted" / "store"
        self.sectors = size_mib << 11
        self.requests = requests
        self.seeded_bytes = 0
        self.rate = (size_mib << 23) * 200 // requests  # so that the copy lasts as long as they do
        self.seed = seed
        self.supervisor = Supervisor(out)
        self.ledger = Ledger(mark, away=True)
        self.rounds = self.brought_bytes = 0

    def proxy(self, name: str) -> Any:
        """Start the proxy and wait until it answers."""
        keys = [f"store={self.store}", f"source=nbd+unix:///?socket={self.work}/source"]
        keys += [f"control={self.work}/control", "window=256K", f"rate={self.rate}"]
        keys += [f"seed={self.work}/seed.img", f"seed-rate={self.rate * 2}"]
        keys += ["mode=standby", "refresh=off", "seal-brings=256K"]
        argv = ["nbdkit", "-f", "-U", str(self.work / name), "python", str(PLUGIN), *keys]
        process = self.supervisor.start(name, argv)
        process.wait_until((self.work / name).exists, "the proxy")
        if not self.ledger.away:
            self.clients_go_to(name)
        return process

    def clients_go_to(self, name: str) -> None:
        current = self.work / "current"
        current.unlink(missing_ok=True)
        current.symlink_to(self.work / name)

    def connect(self) -> Any:
        handle = nbd.NBD()
        handle.connect_unix(str(self.work / "current"))
        return handle

    @property
    def control(self) -> Control:
        return Control(self.work / "control")

    def kill(self, process: Any, after_s: float) -> None:
        time.sleep(after_s)
        self.supervisor.processes.remove(process)
        process.popen.kill()
        process.popen.wait()

    def run(self) -> None:
        """All of it, from the making of the store to its completion."""
        image = self.work / "source.img"
        make_source(image, self.sectors)
        make_seed(self.work / "seed.img", self.sectors)
        argv = ["nbdkit", "-f", "-t", "1", "-U", str(self.work / "source")]
        argv += ["python", str(PLUGIN), f"disk={image}"]
        with self.supervisor:
            source = self.supervisor.start("source", argv)
            source.wait_until((self.work / "source").exists, "the source")
            self.clients_go_to("source")
            first = self.proxy("proxy-1")
            clients = [
                Client(self.connect, self.ledger, *region, seed=self.seed * 100 + at)
                for at, region in enumerate(regions(self.sectors, CLIENTS))
            ]
            self.in_step_with(clients, AWAY / 2)
            self.note_seeded()
            self.kill(first, 0)
            second = self.proxy("proxy-2")
            self.in_step_with(clients, AWAY / 3)
            self.at_work(clients, AWAY / 6)  # what the seal brings
            self.switch(clients)
            self.at_work(clients, (1 - AWAY) / 2)
            self.note_seeded()
            steps = self.start_work(clients, (1 - AWAY) / 2)
            self.kill(second, 0.05)
            third = self.proxy("proxy-3")
            for thread in steps:
                thread.join()
            self.complete()
            for client in clients:
                client.check_all()
                client.close()
            self.supervisor.stop(third)

    def in_step_with(self, clients: list[Client], share: float) -> None:
        """Rounds, as long as the clients are at work at the source."""
        steps = self.start_work(clients, share)
        while any(thread.is_alive() for thread in steps):
            self.control.call("flush")  # so that what a round drops was durable
            self.ledger.asked()
            self.rounds += self.control.call("refresh")["refreshed_blocks"] > 0
            meta = json.loads((self.store / "meta.json").read_text())
            self.ledger.took(meta["base"]["epoch"])
            time.sleep(0.02)

    def switch(self, clients: list[Client]) -> None:
        """The disk is taken over, and the clients go on there."""
        for client in clients:
            client.close()
        self.ledger.asked()
        self.control.call("activate", wait=True)
        self.ledger.took(None)
        self.ledger.away = False
        self.clients_go_to("proxy-2")

    def note_seeded(self) -> None:
        status = self.control.call("status")
        self.seeded_bytes += status["seeded_bytes"]
        self.brought_bytes += status["brought_bytes"]

    def complete(self) -> None:
        hurry(self.control)
        await_copy(self.control, 300)
        self.note_seeded()

    def at_work(self, clients: list[Client], share: float) -> None:
        for thread in self.start_work(clients, share):
            thread.join()

    def start_work(self, clients: list[Client], share: float) -> list[threading.Thread]:
        each = int(self.requests * share / len(clients))
        threads = [threading.Thread(target=self.steps, args=(one, each)) for one in clients]
        for thread in threads:
            thread.start()
        return threads

    def steps(self, client: Client, count: int) -> None:
        try:
            for _ in range(count):
                client.step()
        except BaseException as error:
            print(f"a client failed: {error}", flush=True)
            os._exit(1)


def main(fs: str, size_mib: int, requests: int, seed: int) -> int:
    """Record; LAB_OUT holds the result."""
    out = Path(os.environ["LAB_OUT"])
    recording = Recording(out, size_mib, requests, seed)
    mounted = recording.work / "mounted"
    mounted.mkdir(parents=True)
    run(["modprobe", "-a", "loop", "dm_mod", "dm_log_writes", fs.replace("ext3", "ext4")])
    fs_mib = size_mib * 2 + 24
    disk = loop_device(recording.work / "disk", fs_mib)
    log = loop_device(recording.work / "log", 2048)
    table = f"0 {fs_mib << 11} log-writes {disk} {log}"
    run(["dmsetup", "create", NAME, "--noudevsync", "--table", table])
    run(["dmsetup", "mknodes", NAME])
    device = f"/dev/mapper/{NAME}"
    run([f"mkfs.{fs}", *FILE_SYSTEMS[fs], device])
    run(["mount", "-t", fs, device, str(mounted)])
    run(["sync"])
    mark("mounted")
    began_s = time.monotonic()
    with WriteBack(recording.store, seed):
        recording.run()
    mark("closed")
    run(["umount", str(mounted)])
    run(["dmsetup", "remove", "--noudevsync", "--retry", NAME])
    run(["sync"])
    facts = {"fs": fs, "fs_bytes": fs_mib << 20, "sectors": recording.sectors, "seed": seed}
    facts |= {"seeded_bytes": recording.seeded_bytes, "rounds": recording.rounds}
    facts |= {"brought_bytes": recording.brought_bytes}
    facts |= {"boot": boot_id(), "seconds": round(time.monotonic() - began_s, 1)}
    (out / "facts.json").write_text(json.dumps(facts))
    recording.ledger.trace.save(out / "trace")
    keep_log(recording.work / "log", out / "log.gz")
    subprocess.run(["losetup", "-d", disk, log], check=False)
    return 0


class WriteBack:
    """Writes dirty pages back at random moments, one file at a time, without any promise.

    The kernel may do so whenever it likes; here it is made sure that the live map often reaches the
    disk before the data it speaks of.
    """

    def __init__(self, store: Path, seed: int) -> None:
        self._store = store
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.sync_file_range.argtypes = [
            *(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        ]

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        names = ("map.live", "map.live", "disk.img", "map.durable")
        while not self._stopping.wait(self._random.uniform(0.0, 0.03)):
            path = self._store / self._random.choice(names)
            if path.exists():
                fd = os.open(path, os.O_RDONLY)
                self._libc.sync_file_range(fd, 0, 0, 7)  # start, wait before and after
                os.close(fd)


def keep_log(log: Path, path: Path) -> None:
    """The written part of the log, compressed."""
    with log.open("rb") as file:
        end = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        while True:
            try:
                data = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), data, os.SEEK_HOLE)
        file.seek(0)
        with gzip.open(path, "wb", compresslevel=1) as packed:
            shutil.copyfileobj(_Limited(file, end), packed, 1 << 20)


class _Limited:
    """The first bytes of a file."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._left = file, limit

    def read(self, size: int) -> bytes:
        data: bytes = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
