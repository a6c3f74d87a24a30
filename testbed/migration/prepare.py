"""Before the guest runs: the link is calibrated, the source's server started."""

from testbed import systems
from testbed.hosts import services
from testbed.migration import disk
from testbed.migration.stage import LinkRefused, Stage
from testbed.network import calibrate
from testbed.network.topology import ADDRESS


def calibrate_link(stage: Stage) -> None:
    tolerance = calibrate.Tolerance(stage.parameters.tolerance / 2, stage.parameters.tolerance)
    found = calibrate.calibrate(stage.parameters.profile, stage.sites, tolerance)
    stage.results.calibration = found
    stage.log.event(
        "calibrated",
        rtt_s=round(found.rtt_s, 6),
        to_destination_bits_per_s=round(found.rates["to_destination"]),
        to_source_bits_per_s=round(found.rates["to_source"]),
    )
    if found.problems:
        raise LinkRefused("; ".join(found.problems))


def measure_nbdcopy(stage: Stage) -> None:
    """On a target of its own, so that the run's target has seen no reads before the guest's."""
    address, port = ADDRESS["st_src-wan"], services.CEILING_PORT
    command = services.target_command(stage.image, stage.work / "ceiling.sock", address, port)
    pid = stage.sites.pids["st_src"]
    target = services.start_server(stage.servers, "ceiling", command, pid, port)
    found = calibrate.measure_nbdcopy(
        f"nbd://{address}:{port}",
        stage.sites.pids["st_dst"],
        disk.allocated_bytes(stage.image),
    )
    assert stage.results.calibration is not None
    stage.results.calibration.nbdcopy = found
    stage.servers.stop(target)
    stage.log.event("nbdcopy-measured", copy_s=found["copy_s"], bits_per_s=found["bits_per_s"])


def start_source(stage: Stage) -> None:
    parameters = stage.parameters
    place = systems.Place(
        stage.servers, stage.sites, stage.work, stage.image, parameters.disk_bytes
    )
    stage.system = systems.make(parameters.system, parameters.settings, place)
    stage.system.start_source()
    stage.log.event("source-started", host="st_src")
