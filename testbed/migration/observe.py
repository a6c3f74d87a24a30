"""While the guest runs: from the workloads' start to their end, the move in the middle."""

from testbed.hosts.supervise import Supervisor
from testbed.migration import disk, move, record, relocate
from testbed.migration.stage import NBD, Stage
from testbed.workloads import suite


def observe(stage: Stage) -> None:
    """From the workloads' start to their end."""
    with record.Sampler(stage.log) as stage.sampler, Supervisor(stage.logs) as stage.workloads:
        stage.results.sampler = stage.sampler
        _start_workloads(stage)
        if stage.system.moves:
            move.move(stage)
        with stage.changes:
            stage.changes.start(stage.log.zero_s + stage.log.times_s().get("switch-done", 0.0))
            if stage.system.relocates:
                relocate.relocate(stage)
                stage.go_on_until(stage.log.times_s()["source-off"] + stage.parameters.tail_s)
            stage.go_on_until(stage.parameters.duration_s)
        stage.sampler.sample_links()
        _end_workloads(stage)
    problems = disk.mismatches_after_drop(stage.mount, stage.contents)
    stage.log.check("checksums-mounted", problems, stage.all_match("through the guest's device"))


def _start_workloads(stage: Stage) -> None:
    stage.log.event("workloads-started")
    stage.trace.start(NBD)
    guest = suite.Guest(stage.workloads, stage.mount, stage.logs, stage.parameters.seed)
    for workload in stage.load:
        workload.start(guest)


def _end_workloads(stage: Stage) -> None:
    stage.log.event("workloads-ended")
    stage.check_alive()
    for process in list(stage.workloads.processes):
        stage.workloads.stop(process, timeout_s=300)
    stage.results.done = suite.collect(stage.load, stage.logs)
    stage.results.requests = stage.trace.stop()
