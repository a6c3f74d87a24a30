"""The guest that is a file system with programs on it, on a device-mapper device of one line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from testbed.hosts import proof, services
from testbed.hosts.supervise import Supervisor
from testbed.migration import disk, requests, switch
from testbed.migration.memory import MemoryCopy
from testbed.migration.stage import NBD, Stage
from testbed.workloads import suite


class DeviceGuest:
    """See guest.py; the run's `workloads` are its programs."""

    contents: disk.Contents
    nbd: services.KernelNbd  # what its disk is on now
    arriving: services.KernelNbd  # what it will be on
    device: services.GuestDevice

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.trace = requests.Trace()
        self.workloads = Supervisor(stage.logs)

    @property
    def move_s(self) -> float:
        return self.stage.parameters.memory_copy_s

    def _mounted(self, device: Any, options: str) -> Any:
        return services.mounted(
            device, self.stage.mount, options, self.stage.parameters.file_system
        )

    def make_disk(self) -> None:
        stage, parameters = self.stage, self.stage.parameters
        self.contents = disk.make(
            stage.image,
            stage.mount,
            disk.Wanted(
                size_bytes=parameters.disk_bytes,
                fill_bytes=parameters.fill_bytes,
                deleted_bytes=parameters.deleted_bytes,
                file_system=parameters.file_system,
                partition=parameters.partition,
            ),
            stage.load,
            parameters.seed,
        )
        stage.log.event(
            "image-made",
            allocated_bytes=disk.allocated_bytes(stage.image),
            files=len(self.contents.manifest),
        )

    @contextmanager
    def at_home(self) -> Iterator[None]:
        """The device over link A, mounted; taken down whatever happens."""
        self.nbd = self.stage.attach(NBD[0], "vm_src", "st_src-lan")
        self.device = services.GuestDevice(self.contents.offset_bytes)
        self.device.create(self.nbd)
        try:
            with self._mounted(self.device.path, "noatime"):
                self.stage.log.event("guest-mounted")
                yield
            self.stage.log.event("unmounted")
        finally:
            self.trace.discard()
            self.device.remove()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        stage = self.stage
        with self.workloads:
            stage.log.event("workloads-started")
            self.trace.start(NBD)
            guest = suite.Guest(self.workloads, stage.mount, stage.logs, stage.parameters.seed)
            for workload in stage.load:
                workload.start(guest)
            yield
        problems = disk.mismatches_after_drop(stage.mount, self.contents)
        stage.log.check("checksums-mounted", problems, self._all_match("through its device"))

    def check(self) -> None:
        self.workloads.check()

    def arrive(self) -> None:
        self.arriving = self.stage.attach(NBD[1], "vm_dst", self.stage.system.serves_at)

    def move(self) -> None:
        """The memory copy, and the exchange of the device's line."""
        stage = self.stage
        if stage.parameters.memory_bytes:
            self._copy_memory(stage.parameters.memory_bytes)
        else:
            stage.go_on_until(stage.parameters.switch_at_s)
        switch.check_nothing_kept_early(stage)
        self.device.load(self.arriving)
        stage.system.arm()
        stage.log.event("switch-started")
        downtime_s = self.device.exchange(before_resume=lambda: switch.hand_over(stage))
        stage.system.arrived()
        stage.log.event("switch-done", downtime_s=round(downtime_s, 6))
        stage.results.downtime_s = downtime_s
        services.detach(stage.servers, self.nbd)
        self.nbd = self.arriving

    def _copy_memory(self, size_bytes: int) -> None:
        stage = self.stage
        stage.log.event("memory-copy-started", bytes=size_bytes)
        copy = MemoryCopy(stage.sites, size_bytes)
        while copy.running():
            stage.check_alive()
            time.sleep(0.01)
        copy_s = copy.finish()
        stage.log.event("memory-copy-done", bytes=copy.size_bytes, copy_s=round(copy_s, 6))
        stage.results.memory = (copy.size_bytes, copy_s)

    def rest(self) -> None:
        stage = self.stage
        stage.log.event("workloads-ended")
        stage.check_alive()
        for process in list(self.workloads.processes):
            self.workloads.stop(process, timeout_s=300)
        stage.results.done = suite.collect(stage.load, stage.logs)
        stage.results.requests = self.trace.stop()

    def leave(self) -> None:
        switch.keep_image(self.stage, self.nbd, self.contents.offset_bytes)

    def check_image(self) -> None:
        """The image itself, without the software that served it."""
        stage = self.stage
        image, offset_bytes = stage.system.image, self.contents.offset_bytes
        name = switch.name_of_image(stage)
        problems = proof.file_system(image, offset_bytes)
        stage.log.check("file-system-image", problems, f"e2fsck finds {name} clean")
        with self._mounted(image, f"loop,ro,offset={offset_bytes}"):
            problems = disk.mismatches(stage.mount, self.contents)
            stage.log.check("checksums-image", problems, self._all_match(f"in {name}"))
            for workload in stage.load:
                verdict = workload.check(stage.mount, stage.logs)
                stage.log.check(workload.name, verdict.problems, f"{verdict.good}, in {name}")

    def _all_match(self, where: str) -> str:
        """What is said of files without a mismatch."""
        return f"{len(self.contents.manifest)} files match their checksums {where}"
