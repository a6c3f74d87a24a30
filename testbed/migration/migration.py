"""A scripted migration: `python3 -m testbed.migration [--rtt 20ms --rate 100mbit ...]`.

    prepare    sites and WAN, calibration, the disk, nbdcopy's speed, the source's server
    t = 0      the workloads start on the guest's file system, over link A
    move       what the system must copy before the guest, then the memory
    switch     the guest's device changes from link A to link B
    background after a delay; with `--background off` only once the observation is over
    complete   every block is at the destination: the source's server is shut off
    tail       the workloads go on without the source, then end
    proof      file system, checksums and ledger, through the device and in the raw image

What becomes of the disk is the system's business (`testbed.systems`), what the guest does the
workloads' (`testbed.workloads`), what happens to the link meanwhile the events' (`link_events`).
Exit status: 0 all is well, 1 a check or a step failed, 3 the link was off and refused.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relocator.errors import RelocatorError
from testbed import (
    calibrate,
    disk,
    link_events,
    options,
    proof,
    record,
    requests,
    services,
    systems,
    topology,
)
from testbed.completion import Completion
from testbed.memory import MemoryCopy
from testbed.results import Results
from testbed.supervise import Supervisor
from testbed.topology import ADDRESS
from testbed.workloads import suite

EXIT_FAILED = 1
EXIT_REFUSED = 3
RELOCATION_LIMIT_S = 3600.0
NBD = (Path("/dev/nbd0"), Path("/dev/nbd1"))


class LinkRefused(RuntimeError):
    """The measured link is not the one that was asked for."""


class CheckFailed(RuntimeError):
    """Something that must hold does not."""


class Migration:
    """One run. The steps read from top to bottom; each leaves what the next one needs."""

    def __init__(self, parameters: options.Parameters, results: Results, work: Path) -> None:
        self.parameters = parameters
        self.results = results
        self.log = results.recorder
        self.work = work
        self.logs = work / "logs"
        self.logs.mkdir()
        self.image = work / "source.img"
        self.mount = work / "guest"
        self.load = parameters.load
        self.trace = requests.Trace()
        self.changes = link_events.Schedule(parameters.steps, topology.WAN_PORTS, results.recorder)

    # -- prepare ---------------------------------------------------------------------------

    def run(self) -> None:
        """The whole run; raises where it fails."""
        services.prepare_kernel()
        with topology.sites(self.parameters.profile) as self.sites:
            self.log.event("sites-built")
            self._calibrate()
            self._make_disk()
            with Supervisor(self.logs) as self.servers:
                if self.parameters.ceiling == "on":
                    self._measure_nbdcopy()
                self._start_source()
                with self._guest_disk():
                    self._observe()
                self._check_device()
            self._check_image()

    def _calibrate(self) -> None:
        tolerance = calibrate.Tolerance(self.parameters.tolerance / 2, self.parameters.tolerance)
        found = calibrate.calibrate(self.parameters.profile, self.sites, tolerance)
        self.results.calibration = found
        self.log.event(
            "calibrated",
            rtt_s=round(found.rtt_s, 6),
            to_destination_bits_per_s=round(found.rates["to_destination"]),
            to_source_bits_per_s=round(found.rates["to_source"]),
        )
        if found.problems:
            raise LinkRefused("; ".join(found.problems))

    def _make_disk(self) -> None:
        parameters = self.parameters
        self.contents = disk.make(
            self.image,
            self.mount,
            disk.Wanted(
                size_bytes=parameters.disk_bytes,
                fill_bytes=parameters.fill_bytes,
                deleted_bytes=parameters.deleted_bytes,
                file_system=parameters.file_system,
                partition=parameters.partition,
            ),
            self.load,
            parameters.seed,
        )
        self.log.event(
            "image-made",
            allocated_bytes=disk.allocated_bytes(self.image),
            files=len(self.contents.manifest),
        )

    def _measure_nbdcopy(self) -> None:
        """On a target of its own, so that the run's target has seen no reads before the guest's."""
        address, port = ADDRESS["st_src-wan"], services.CEILING_PORT
        command = services.target_command(self.image, self.work / "ceiling.sock", address, port)
        pid = self.sites.pids["st_src"]
        target = services.start_server(self.servers, "ceiling", command, pid, port)
        found = calibrate.measure_nbdcopy(
            f"nbd://{address}:{port}",
            self.sites.pids["st_dst"],
            disk.allocated_bytes(self.image),
        )
        assert self.results.calibration is not None
        self.results.calibration.nbdcopy = found
        self.servers.stop(target)
        self.log.event("nbdcopy-measured", copy_s=found["copy_s"], bits_per_s=found["bits_per_s"])

    def _start_source(self) -> None:
        parameters = self.parameters
        ground = systems.Ground(
            self.servers, self.sites, self.work, self.image, parameters.disk_bytes
        )
        self.system = systems.make(parameters.system, parameters.settings, ground)
        self.system.start_source()
        self.log.event("source-started", host="st_src")

    def _attach(self, device: Path, host: str, server: str) -> services.KernelNbd:
        return services.attach(self.servers, device, ADDRESS[server], self.sites.pids[host])

    @contextmanager
    def _guest_disk(self) -> Iterator[None]:
        """The guest's device over link A, mounted; taken down whatever happens."""
        self.nbd = self._attach(NBD[0], "vm_src", "st_src-lan")
        self.device = services.GuestDevice(self.contents.offset_bytes)
        self.device.create(self.nbd)
        try:
            with self._mounted(self.device.path, "noatime"):
                self.log.event("guest-mounted")
                yield
            self.log.event("unmounted")
        finally:
            self.trace.discard()
            self.device.remove()

    def _mounted(self, device: Path, mount_options: str) -> Any:
        file_system = self.parameters.file_system
        return services.mounted(device, self.mount, mount_options, file_system)

    # -- the run ---------------------------------------------------------------------------

    def _observe(self) -> None:
        """From the workloads' start to their end."""
        with record.Sampler(self.log) as self.sampler, Supervisor(self.logs) as self.workloads:
            self.results.sampler = self.sampler
            self._start_workloads()
            if self.system.moves:
                self._move()
            with self.changes:
                self.changes.start(self.log.zero_s + self.log.times_s().get("switch-done", 0.0))
                if self.system.relocates:
                    self._relocate()
                    self._go_on_until(self.log.times_s()["source-off"] + self.parameters.tail_s)
                self._go_on_until(self.parameters.duration_s)
            self.sampler.sample_links()
            self._end_workloads()
        problems = disk.mismatches_after_drop(self.mount, self.contents)
        self.log.check("checksums-mounted", problems, self._all_match("through the guest's device"))

    def _all_match(self, where: str) -> str:
        return f"{len(self.contents.manifest)} files match their checksums {where}"

    def _go_on_until(self, run_s: float) -> None:
        """Lets the run go on; anything that ends early or fails ends it."""
        assert self.log.zero_s is not None
        while (left_s := self.log.zero_s + run_s - time.monotonic()) > 0:
            self._check_alive()
            time.sleep(min(left_s, 0.25))

    def _check_alive(self) -> None:
        self.workloads.check()
        self.servers.check()
        self.sampler.check()
        self.changes.check()

    def _start_workloads(self) -> None:
        self.log.event("workloads-started")
        self.trace.start(NBD)
        guest = suite.Guest(self.workloads, self.mount, self.logs, self.parameters.seed)
        for workload in self.load:
            workload.start(guest)

    def _move(self) -> None:
        """What goes before the guest, the memory copy, and the switch at its end."""
        parameters = self.parameters
        copy: MemoryCopy | None = None
        self._go_on_until(max(0.0, parameters.switch_at_s - parameters.memory_copy_s) / 2)
        self._start_destination()
        self._go_on_until(max(0.0, parameters.switch_at_s - parameters.memory_copy_s))
        self.log.event("move-started")
        if self.system.copies_first:
            self.log.event("copy-first-started")
            self.system.copy_first()
            self.log.event("copy-first-done")
        if parameters.memory_bytes:
            self.log.event("memory-copy-started", bytes=parameters.memory_bytes)
            copy = MemoryCopy(self.sites, parameters.memory_bytes)
        while copy is not None and copy.running():
            self._check_alive()
            time.sleep(0.01)
        if copy is not None:
            copy_s = copy.finish()
            self.log.event("memory-copy-done", bytes=copy.size_bytes, copy_s=round(copy_s, 6))
            self.results.memory_copy_s = copy_s
        else:
            self._go_on_until(parameters.switch_at_s)
        self._switch()

    def _start_destination(self) -> None:
        """The system's servers there, and the device that the guest will move to."""
        self.system.prepare()
        if self.system.relocates:
            self.log.event("destination-started", host="st_dst")
        self.arriving = self._attach(NBD[1], "vm_dst", self.system.serves_at)

    def _switch(self) -> None:
        """The guest moves: what it wrote is at the source, what it will write is not."""
        self._check_nothing_kept_early()
        self.device.load(self.arriving)
        self.log.event("switch-started")
        downtime_s = self.device.exchange(before_resume=self._hand_over)
        self.log.event("switch-done", downtime_s=round(downtime_s, 6))
        self.results.downtime_s = downtime_s
        self.source_mtime_ns = self.image.stat().st_mtime_ns
        services.detach(self.servers, self.nbd)
        self.nbd = self.arriving
        if self.system.status() is not None:
            self.sampler.status_of = self.system.status

    def _check_nothing_kept_early(self) -> None:
        """What a proxy keeps while the guest writes at the source must be dropped at the switch."""
        status = self.system.status()
        if status is not None and not self.system.copies_ahead:
            kept = status["present_blocks"]
            problems = [f"{kept} blocks were kept while the guest was at the source"]
            self.log.check("nothing-kept-early", problems[: int(kept > 0)], "no block was")

    def _hand_over(self) -> None:
        """The guest stands still: authority over the disk moves with it."""
        start_s = time.monotonic()
        self.system.hand_over()
        self.results.handover_s = time.monotonic() - start_s

    def _relocate(self) -> None:
        """The background copy, until the source can be shut off."""
        if self.system.has_all:
            self.log.event("relocation-complete")
            self.results.relocated(None, time.monotonic())
        else:
            self._copy_the_rest()
        self._shut_off_source()

    def _copy_the_rest(self) -> None:
        parameters = self.parameters
        if parameters.background == "on":
            self._go_on_until(self.log.times_s()["switch-done"] + parameters.background_delay_s)
        else:
            self._go_on_until(parameters.duration_s)
        self.results.background_started(self._sample_presence())
        self.log.event("background-started")
        completion = Completion(self.system.copy)
        deadline_s = time.monotonic() + RELOCATION_LIMIT_S
        while completion.at_s is None:
            self._check_alive()
            if completion.failure is not None:
                raise CheckFailed(f"the copy failed: {completion.failure}")
            if time.monotonic() > deadline_s:
                raise CheckFailed(f"not complete after {RELOCATION_LIMIT_S:g} s")
            time.sleep(0.02)
        status = self._sample_presence()
        self.sampler.status_of = None
        known = status or {}
        fetched = {key: known[key] for key in record.PRESENCE if key in known and "bytes" in key}
        self.log.event("relocation-complete", **fetched)
        self.results.relocated(status, completion.at_s)

    def _sample_presence(self) -> record.Status | None:
        return self.sampler.sample_presence() if self.sampler.status_of is not None else None

    def _shut_off_source(self) -> None:
        self.system.shut_off_source()
        self.log.event("source-off")
        self.results.allocated_bytes = disk.allocated_bytes(self.image)
        written = self.image.stat().st_mtime_ns != self.source_mtime_ns
        problems = ["the source's image was written after the switch"][: int(written)]
        self.log.check("source-untouched", problems, "nothing was written to it after the switch")

    def _end_workloads(self) -> None:
        self.log.event("workloads-ended")
        self._check_alive()
        for process in list(self.workloads.processes):
            self.workloads.stop(process, timeout_s=300)
        self.results.done = suite.collect(self.load, self.logs)
        self.results.requests = self.trace.stop()

    # -- proof -----------------------------------------------------------------------------

    def _check_device(self) -> None:
        """After the unmount, what the destination's server serves; then all servers end."""
        problems = proof.file_system(self.nbd.device, self.contents.offset_bytes)
        self.log.check("file-system-device", problems, "e2fsck finds it clean, on the device")
        self.system.keep_image(self.nbd.device)
        services.detach(self.servers, self.nbd)
        if not self.system.relocates:
            self.results.allocated_bytes = disk.allocated_bytes(self.image)

    def _check_image(self) -> None:
        """The image itself, without the software that served it."""
        image, offset_bytes = self.system.image, self.contents.offset_bytes
        name = "the moved image" if self.system.relocates else "the source's image"
        problems = proof.file_system(image, offset_bytes)
        self.log.check("file-system-image", problems, f"e2fsck finds {name} clean")
        with self._mounted(image, f"loop,ro,offset={offset_bytes}"):
            problems = disk.mismatches(self.mount, self.contents)
            self.log.check("checksums-image", problems, self._all_match(f"in {name}"))
            for workload in self.load:
                verdict = workload.check(self.mount, self.logs)
                self.log.check(workload.name, verdict.problems, f"{verdict.good}, in {name}")


def _run(parameters: options.Parameters, results: Results, work: Path) -> int:
    """Runs, and turns whatever happened into an outcome."""
    try:
        Migration(parameters, results, work).run()
    except LinkRefused as refusal:
        results.conclude("refused", f"the link is off: {refusal}")
        return EXIT_REFUSED
    except (RelocatorError, RuntimeError, OSError, ValueError) as error:
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", []))
        results.conclude("failed", f"{error}{notes}".replace(str(work), "WORK"))
        return EXIT_FAILED
    failed = [check["name"] for check in results.recorder.checks if not check["ok"]]
    if failed:
        results.conclude("failed", f"checks failed: {', '.join(failed)}")
        return EXIT_FAILED
    results.conclude("ok", None)
    return 0


def _interrupted(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    parameters = options.parse(arguments)
    if "LAB_OUT" not in os.environ:
        print("testbed.migration: LAB_OUT is not set: it names the directory for the results")
        return EXIT_FAILED
    out = Path(os.environ["LAB_OUT"])
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupted)
    # Disk images live in memory: the WAN is to be the slowest part.
    work = Path(tempfile.mkdtemp(prefix="migration-", dir="/dev/shm"))
    try:
        results = Results(parameters, os.environ.get("LAB_CLOCK", "unknown"))
        status = _run(parameters, results, work)
        results.write(out)
        return status
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
