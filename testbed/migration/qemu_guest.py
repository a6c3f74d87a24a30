"""The guest that is a VM: QEMU at both sites, the kept guest woken at the source, its own workload.

It was booted before, natively, and kept (testbed.guest.prepared): emulated within the emulated lab
a boot takes minutes. Memory goes from VM host to VM host by QEMU's precopy, over a link of its own;
at its end QEMU stops the guest and waits (pause-before-switchover), the system hands the disk over,
and QEMU goes on. Downtime is from QEMU's event STOP at the source to RESUME at the destination.

Of what the guest says the times are its own clock's, which stands while the guest does. Each host's
offset is the least that any line took from the guest's clock to ours, polling included.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed.ending import Helper
from testbed.guest import disks, report, vm
from testbed.guest.prepared import Prepared
from testbed.hosts import proof, qmp
from testbed.hosts.supervise import ProcessError, Supervisor
from testbed.migration import disk, switch
from testbed.migration.stage import NBD, Stage
from testbed.network.topology import ADDRESS
from testbed.workloads.base import Io, Log
from testbed.workloads.records import RECORD_BYTES

MEMORY_PORT = 4444
PAUSE = "pause-before-switchover"
# QEMU stops the guest once the rest of its memory can be sent in so long. Its default, 300, would
# hide what the disk adds.
DOWNTIME_LIMIT_MS = 100
MIGRATION_LIMIT_S = 600.0
POLL_S = 0.005


def contents(disk_bytes: int, fill_bytes: int, file_system: str) -> disks.Contents:
    """The guest's disk with so much on it, the system included."""
    large_bytes = fill_bytes - disks.SYSTEM_BYTES - disks.Contents.ledger_bytes
    if large_bytes < disks.MIB:
        least = (fill_bytes - large_bytes) // disks.MIB + 1
        raise disk.DiskError(f"fill={fill_bytes}: a guest of QEMU takes at least {least} MiB")
    return disks.Contents(disk_bytes, large_bytes // disks.MIB * disks.MIB, file_system=file_system)


class Listener(Helper):
    """Notes when the lines of a VM's report arrive."""

    doing = "listening to the guest"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.offset_s = float("inf")  # of our clock from the guest's, at this host
        self.begin()

    def work(self) -> None:
        while not self._path.exists() and not self.ending.wait(POLL_S):
            pass
        rest = b""
        with self._path.open("rb") as file:
            while not self.ending.wait(POLL_S):
                text = rest + file.read()
                now_s = time.monotonic()
                *lines, rest = text.split(b"\n")
                for line in lines:
                    kind, *words = line.decode().split(",")
                    if kind in ("ack", "read"):
                        self.offset_s = min(self.offset_s, now_s - float(words[-2]))


class QemuGuest:
    """See guest.py."""

    guest: vm.Vm

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.origin = Prepared(Path(os.environ.get("LAB_FILES", ".")), vm.Settings())
        if not self.origin.state.exists():
            raise ProcessError("there is no guest in LAB_FILES: run by `testbed.migration.lab`")
        self.vms = Supervisor(stage.logs)
        self.arriving: vm.Vm | None = None
        self.way: list[vm.Vm] = []
        self.listeners: list[Listener] = []

    @property
    def move_s(self) -> float:
        """Its memory is about as large as its kept state."""
        parameters = self.stage.parameters
        size_bytes = self.origin.state.stat().st_size
        return size_bytes * 8 * 1.05 / parameters.rate_bits_per_s + 2 * parameters.rtt_s

    def make_disk(self) -> None:
        made = self.origin.disk(self.stage.work)
        made.rename(self.stage.image)
        allocated_bytes = disk.allocated_bytes(self.stage.image)
        self.stage.log.event("image-made", allocated_bytes=allocated_bytes, files=2)

    def _start(self, host: str, server: str, incoming: str | None) -> vm.Vm:
        return vm.start(
            self.vms,
            f"qemu-{host}",
            self.stage.work / host,
            self.origin.boot,
            [f"nbd://{ADDRESS[server]}"],
            settings=self.origin.settings,
            incoming=incoming,
            state=self.origin.state if incoming is None else None,
            namespace_pid=self.stage.sites.pids[host],
        )

    @contextmanager
    def at_home(self) -> Iterator[None]:
        """Woken at the source, where it waits for its first command."""
        with self.vms:
            try:
                self.guest = self._start("vm_src", "st_src-lan", None)
                self._came(self.guest)
                self.guest.wait_running()
                self.stage.log.event("guest-mounted")
                yield
                self.stage.log.event("unmounted")
            finally:
                for one in self.listeners:
                    one.end()

    def _came(self, guest: vm.Vm) -> None:
        self.way.append(guest)
        self.listeners.append(Listener(guest.directory / "report"))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        parameters = self.stage.parameters
        rates = (parameters.write_iops, parameters.read_iops)
        self.guest.tell(
            f"write 0 {rates[0]} {parameters.seed}", f"read 0 {rates[1]} {parameters.seed + 1}"
        )
        self.stage.log.event("workloads-started")
        yield

    def check(self) -> None:
        self.vms.check()
        if found := report.errors(b"", self.guest.console):
            raise ProcessError(f"the guest says: {'; '.join(found)}")

    def arrive(self) -> None:
        incoming = f"tcp:{ADDRESS['vm_dst-mem']}:{MEMORY_PORT}"
        self.arriving = self._start("vm_dst", self.stage.system.serves_at, incoming)
        self.arriving.monitor.call("query-status")  # from now on its events are kept

    def move(self) -> None:
        stage, old, new = self.stage, self.guest, self.arriving
        assert new is not None
        switch.check_nothing_kept_early(stage)
        start_s = stage.log.event("memory-copy-started")
        old.migrate(
            f"tcp:{ADDRESS['vm_dst-mem']}:{MEMORY_PORT}", PAUSE, downtime_limit=DOWNTIME_LIMIT_MS
        )
        old.wait_migrated("pre-switchover", MIGRATION_LIMIT_S)
        copy_s = stage.log.event("switch-started") - start_s
        switch.hand_over(stage)
        old.monitor.call("migrate-continue", state="pre-switchover")
        old.wait_migrated("completed", MIGRATION_LIMIT_S)
        done = old.monitor.call("query-migrate")
        size_bytes = done["ram"]["transferred"]
        stage.results.memory = (size_bytes, copy_s)
        resumed = qmp.await_event(new.monitor, "RESUME", MIGRATION_LIMIT_S)
        stage.system.arrived()
        stopped = qmp.await_event(old.monitor, "STOP", MIGRATION_LIMIT_S)
        downtime_s = resumed.at_s - stopped.at_s
        said_s = done["downtime"] / 1e3
        stage.log.event("switch-done", downtime_s=round(downtime_s, 6), qemu_downtime_s=said_s)
        stage.log.event("memory-copy-done", bytes=size_bytes, copy_s=round(copy_s, 6))
        stage.results.downtime_s = downtime_s
        self.guest, self.arriving = new, None
        self._came(new)
        old.kill()

    def rest(self) -> None:
        """The guest shuts down; what it did, on our clock."""
        stage = self.stage
        stage.log.event("workloads-ended")
        stage.check_alive()
        self.guest.shut_down(timeout_s=300)
        if self.arriving is not None:  # nobody came
            self.vms.stop(self.arriving.process)
        for one in self.listeners:
            one.end()
        stage.results.done = Log(self._ios())
        problems = report.errors(b"".join(one.report for one in self.way), "")
        problems += [said for one in self.way for said in report.errors(b"", one.console)]
        stage.log.check("guest", problems, "the guest saw no error")

    def _ios(self) -> list[Io]:
        """Every I/O that the guest measured; those of a line that two hosts share are at the
        second's offset."""
        found: list[Io] = []
        rest = b""
        for one, listener in zip(self.way, self.listeners, strict=True):
            whole, newline, after = (rest + one.report).rpartition(b"\n")
            said, rest = report.parse([whole + newline]), after
            found += [
                Io(read.end_s + listener.offset_s, "read", read.took_s, read.block * RECORD_BYTES)
                for read in said.reads
            ]
            for ack in said.acknowledged.get(0, []):
                at_s, place = ack.time_s + listener.offset_s, ack.slot * RECORD_BYTES
                # A record is both: what the ledger counts, and a small synchronous write.
                found += [Io(at_s, kind, ack.latency_s, place) for kind in ("write", "ledger")]
        return found

    def leave(self) -> None:
        nbd = self.stage.attach(NBD[1], *self._last())
        switch.keep_image(self.stage, nbd)

    def _last(self) -> tuple[str, str]:
        """The host that the guest was at last, and where its disk is served."""
        moved = self.stage.system.moves
        return ("vm_dst", self.stage.system.serves_at) if moved else ("vm_src", "st_src-lan")

    def check_image(self) -> None:
        stage, image = self.stage, self.stage.system.image
        name = switch.name_of_image(stage)
        texts = [one.report for one in self.way]
        stage.log.check("file-system-image", proof.file_system(image), f"e2fsck finds {name} clean")
        said = report.parse(texts)
        ledger, large = report.contents_problems(image, said.acknowledged.get(0, []))
        count = len(said.acknowledged.get(0, []))
        stage.log.check("ledger", ledger, f"all {count} acknowledged writes are in {name}")
        stage.log.check("checksums-image", large, f"the large file is as it was, in {name}")
