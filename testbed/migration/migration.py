"""A scripted migration: `python3 -m testbed.migration [--rtt 20ms --rate 100mbit ...]`.

    prepare    the plugin's bytecode, sites and WAN, calibration, the disk, nbdcopy's speed, the
               source's server
    t = 0      the workloads start on the guest's file system, over link A
    move       what the system must copy before the guest, then the memory
    switch     the guest's device changes from link A to link B
    background after a delay; with `--background off` only once the observation is over
    complete   every block is at the destination: the source's server is shut off
    tail       the workloads go on without the source, then end
    proof      file system, checksums and ledger, through the device and in the raw image

The acts are in modules of the same names. What the guest is, is told by `guest.py`; what becomes of
its disk is the system's business (`testbed.systems`), what it does the workloads'
(`testbed.workloads`), what happens to the link the events' (`testbed.network.link_events`).
Exit status: 0 all is well, 1 a check or a step failed, 3 the link was off and refused.
"""

import compileall
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from relocator.errors import RelocatorError
from testbed import ending
from testbed.hosts import services
from testbed.hosts.supervise import Supervisor
from testbed.migration import observe, options, prepare, prove
from testbed.migration.device_guest import DeviceGuest
from testbed.migration.qemu_guest import QemuGuest
from testbed.migration.results import Results
from testbed.migration.stage import LinkRefused, Stage
from testbed.network import topology

EXIT_FAILED = 1
EXIT_REFUSED = 3


def migrate(stage: Stage) -> None:
    """The whole run; raises where it fails."""
    real = stage.parameters.guest == "qemu"
    stage.guest = QemuGuest(stage) if real else DeviceGuest(stage)
    services.prepare_kernel()
    compileall.compile_dir(services.PLUGIN.parent, quiet=1)  # as a package is when it is installed
    with topology.sites(stage.parameters.profile) as stage.sites:
        stage.log.event("sites-built")
        prepare.calibrate_link(stage)
        stage.guest.make_disk()
        with Supervisor(stage.logs) as stage.servers:
            if stage.parameters.ceiling == "on":
                prepare.measure_nbdcopy(stage)
            prepare.start_source(stage)
            with stage.guest.at_home():
                observe.observe(stage)
            prove.check_device(stage)
        prove.check_image(stage)


def _run(parameters: options.Parameters, results: Results, work: Path) -> int:
    """Runs, and turns whatever happened into an outcome."""
    try:
        migrate(Stage(parameters, results, work))
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


def main(arguments: Sequence[str]) -> int:
    parameters = options.parse(arguments)
    if "LAB_OUT" not in os.environ:
        print("testbed.migration: LAB_OUT is not set: it names the directory for the results")
        return EXIT_FAILED
    out = Path(os.environ["LAB_OUT"])
    out.mkdir(parents=True, exist_ok=True)
    ending.on_signals()
    # Disk images live in memory: the WAN is to be the slowest part.
    work = Path(tempfile.mkdtemp(prefix="migration-", dir="/dev/shm"))
    try:
        results = Results(parameters, os.environ.get("LAB_CLOCK", "unknown"))
        status = _run(parameters, results, work)
        results.write(out)
        return status
    finally:
        shutil.rmtree(work)
