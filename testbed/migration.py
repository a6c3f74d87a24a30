"""A scripted migration: `python3 -m testbed.migration [--rtt 20ms --rate 100mbit ...]`.

    prepare    sites and WAN, calibration, the disk, nbdcopy's speed, the source's target
    t = 0      the workloads start on the guest's file system, over link A
    switch     the memory has been copied; the guest's device changes from link A to link B
    background after a delay; with `--background off` only once the observation is over
    complete   every block is at the destination: the source's target is shut off
    tail       the workloads go on without the source, then end
    proof      file system, checksums and ledger, through the device and in the raw image

In mode `remote` the guest moves and its disk does not. Exit status: 0 all is well, 1 a check or a
step failed, 3 the link was off and refused.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relocator.control import Client
from relocator.errors import RelocatorError
from testbed import calibrate, disk, options, proof, record, services, topology
from testbed.memory import MemoryCopy
from testbed.results import Results
from testbed.supervise import Process, Supervisor
from testbed.topology import ADDRESS
from testbed.workloads import fio

EXIT_FAILED = 1
EXIT_REFUSED = 3
RELOCATION_LIMIT_S = 3600.0
NBD = (Path("/dev/nbd0"), Path("/dev/nbd1"))


class LinkRefused(RuntimeError):
    """The measured link is not the one that was asked for."""


class CheckFailed(RuntimeError):
    """Something that must hold does not."""


class Completion:
    """Waits in a thread for the relocation to complete, and notes when that was."""

    def __init__(self, control: Path) -> None:
        self.at_s: float | None = None
        self.failure: BaseException | None = None
        self._control = control
        self._thread = threading.Thread(target=self._wait, name="completion", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        try:
            Client(self._control).call("wait", patience_s=None, timeout_s=RELOCATION_LIMIT_S)
            self.at_s = time.monotonic()
        except BaseException as error:
            self.failure = error


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
        self.store = work / "store"
        self.mount = work / "guest"
        self.control = work / "proxy.sock"
        self.device = services.GuestDevice()
        self.relocates = parameters.mode == "relocate"

    # -- prepare ---------------------------------------------------------------------------

    def run(self) -> None:
        """The whole run; raises where it fails."""
        services.prepare_kernel()
        with topology.sites(self.parameters.profile) as self.sites:
            self.log.event("sites-built")
            self._calibrate()
            self._make_disk()
            with Supervisor(self.logs) as self.servers:
                self._measure_nbdcopy()
                self._start_target()
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
            self.image, self.mount, parameters.disk_bytes, parameters.fill_bytes, parameters.seed
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

    def _start_target(self) -> None:
        # On every address: the guest comes by one subnet, the proxy by another.
        command = services.target_command(self.image, self.work / "target.sock", "0.0.0.0")
        pid = self.sites.pids["st_src"]
        self.target = services.start_server(self.servers, "target", command, pid)
        self.log.event("target-started", host="st_src")

    def _attach(self, device: Path, host: str, server: str) -> services.KernelNbd:
        return services.attach(self.servers, device, ADDRESS[server], self.sites.pids[host])

    @contextmanager
    def _guest_disk(self) -> Iterator[None]:
        """The guest's device over link A, mounted; taken down whatever happens."""
        self.nbd = self._attach(NBD[0], "vm_src", "st_src-lan")
        self.device.create(self.nbd)
        try:
            with services.mounted(self.device.path, self.mount, "noatime,data=ordered"):
                self.log.event("guest-mounted")
                yield
            self.log.event("unmounted")
        finally:
            self.device.remove()

    # -- the run ---------------------------------------------------------------------------

    def _observe(self) -> None:
        """From the workloads' start to their end."""
        with record.Sampler(self.log) as self.sampler, Supervisor(self.logs) as self.workloads:
            self.results.sampler = self.sampler
            self._start_workloads()
            self._move()
            if self.relocates:
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

    def _python(self, module: str, *arguments: object) -> list[str]:
        return [sys.executable, "-m", module, *(str(one) for one in arguments)]

    def _start_workloads(self) -> None:
        parameters, start = self.parameters, self.workloads.start
        self.log.event("workloads-started")
        load = fio.Load(
            large_bytes=self.contents.large_bytes,
            writes_bytes=disk.WRITES_BYTES,
            read_iops=parameters.read_iops,
            write_iops=parameters.write_iops,
            seed=parameters.seed,
        )
        command = fio.command(self.mount, self.logs, load)
        start("fio", command, None, fio.STOP_SIGNAL, fio.GOOD_STATUSES)
        time.sleep(fio.SETTLE_S)
        log, rate = self.logs / "ledger.acks", parameters.ledger_iops
        ledger = self._python("testbed.workloads.ledger", self.mount / "ledger", log, rate)
        start("ledger", [*ledger, str(parameters.seed)])
        log, period_s = self.logs / "compile.cycles", parameters.compile_period_s
        start("compile", self._python("testbed.workloads.compile", self.mount, log, period_s))

    def _move(self) -> None:
        """The memory copy, and the switch at its end."""
        parameters = self.parameters
        copy: MemoryCopy | None = None
        self._go_on_until(max(0.0, parameters.switch_at_s - parameters.memory_copy_s) / 2)
        self._start_destination()
        if parameters.memory_bytes:
            self._go_on_until(max(0.0, parameters.switch_at_s - parameters.memory_copy_s))
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
        """The proxy (in mode `relocate`) and the device that the guest will move to."""
        if not self.relocates:
            self.arriving = self._attach(NBD[1], "vm_dst", "st_src-lan")
            return
        source = f"nbd://{ADDRESS['st_src-wan']}:{services.PORT}"
        keys = ["mode=standby", "background=off"]
        keys += [f"order={self.parameters.order}", f"readahead={self.parameters.readahead}"]
        command = services.proxy_command(self.store, source, self.control, "0.0.0.0", keys)
        pid = self.sites.pids["st_dst"]
        self.proxy = services.start_server(self.servers, "proxy", command, pid)
        self.log.event("proxy-started", host="st_dst")
        self.arriving = self._attach(NBD[1], "vm_dst", "st_dst-lan")

    def _switch(self) -> None:
        """The guest moves: what it wrote is at the source, what it will write is not."""
        if self.relocates:
            kept = Client(self.control).call("status")["present_blocks"]
            problems = [f"{kept} blocks were kept while the guest was at the source"]
            self.log.check("nothing-kept-early", problems[: int(kept > 0)], "no block was")
        self.device.load(self.arriving)
        self.log.event("switch-started")
        downtime_s = self.device.exchange(before_resume=self._hand_over)
        self.log.event("switch-done", downtime_s=round(downtime_s, 6))
        self.results.downtime_s = downtime_s
        self.source_mtime_ns = self.image.stat().st_mtime_ns
        services.detach(self.servers, self.nbd)
        self.nbd = self.arriving
        if self.relocates:
            self.completion = Completion(self.control)
            self.sampler.status_of = lambda: Client(self.control).call("status")

    def _hand_over(self) -> None:
        """The guest stands still: authority over the disk moves with it."""
        if self.relocates:
            start_s = time.monotonic()
            Client(self.control).call("activate")
            self.results.handover_s = time.monotonic() - start_s

    def _relocate(self) -> None:
        """The background copy, until the source can be shut off."""
        parameters = self.parameters
        if parameters.background == "on":
            self._go_on_until(self.log.times_s()["switch-done"] + parameters.background_delay_s)
        else:
            self._go_on_until(parameters.duration_s)
        self.results.background_started(self.sampler.sample_presence())
        Client(self.control).call("set", background="on")
        self.log.event("background-started")
        deadline_s = time.monotonic() + RELOCATION_LIMIT_S
        while self.completion.at_s is None:
            self._check_alive()
            if self.completion.failure is not None:
                raise CheckFailed(f"waiting for completion: {self.completion.failure}")
            if time.monotonic() > deadline_s:
                raise CheckFailed(f"not complete after {RELOCATION_LIMIT_S:g} s")
            time.sleep(0.02)
        status = self.sampler.sample_presence()
        self.sampler.status_of = None
        fetched = {key: status[key] for key in record.PRESENCE if key.endswith("_bytes")}
        self.log.event("relocation-complete", **fetched)
        self.results.relocated(status, self.completion.at_s)
        self._shut_off_source()

    def _shut_off_source(self) -> None:
        self.servers.stop(self.target)
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
        self.results.collect(self.logs)

    # -- proof -----------------------------------------------------------------------------

    def _check_device(self) -> None:
        """After the unmount, what the destination's server serves; then it ends."""
        problems = proof.file_system(self.nbd.device)
        self.log.check("file-system-device", problems, "e2fsck finds it clean, on the device")
        services.detach(self.servers, self.nbd)
        last: Process = self.proxy if self.relocates else self.target
        self.servers.stop(last, timeout_s=120)
        if not self.relocates:
            self.results.allocated_bytes = disk.allocated_bytes(self.image)

    def _check_image(self) -> None:
        """The image itself, without any of our software."""
        image = self.store / "disk.img" if self.relocates else self.image
        name = "the store's disk.img" if self.relocates else "the source's image"
        self.log.check("file-system-image", proof.file_system(image), f"e2fsck finds {name} clean")
        with services.mounted(image, self.mount, "loop,ro"):
            problems = disk.mismatches(self.mount, self.contents)
            self.log.check("checksums-image", problems, self._all_match(f"in {name}"))
            problems = proof.ledger_file(self.mount / "ledger", self.results.acknowledged)
            count = len(self.results.acknowledged)
            self.log.check("ledger", problems, f"all {count} acknowledged writes are in {name}")


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
