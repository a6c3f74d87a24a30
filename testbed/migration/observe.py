"""While the guest runs: from the workloads' start to their end, the move in the middle."""

from testbed.migration import move, record, relocate
from testbed.migration.stage import Stage


def observe(stage: Stage) -> None:
    """From the workloads' start to their end."""
    with record.Sampler(stage.log) as stage.sampler, stage.guest.at_work():
        stage.results.sampler = stage.sampler
        if stage.system.moves:
            move.move(stage)
        with stage.changes:
            stage.changes.start(stage.log.zero_s + stage.log.times_s().get("switch-done", 0.0))
            if stage.system.relocates:
                relocate.relocate(stage)
                stage.go_on_until(stage.log.times_s()["source-off"] + stage.parameters.tail_s)
            stage.go_on_until(stage.parameters.duration_s)
        stage.sampler.sample_links()
        stage.guest.rest()
