"""The guest moves: what goes before it, then the guest itself."""

from testbed.migration.stage import Stage


def move(stage: Stage) -> None:
    """What the system copies before the guest, then its memory and the switch."""
    begins_s = max(0.0, stage.parameters.switch_at_s - stage.guest.move_s)
    stage.go_on_until(begins_s / 2)
    _start_destination(stage)
    stage.go_on_until(begins_s)
    stage.log.event("move-started")
    if stage.system.copies_first:
        stage.log.event("copy-first-started")
        stage.system.copy_first()
        stage.log.event("copy-first-done")
    stage.guest.move()
    stage.source_mtime_ns = stage.image.stat().st_mtime_ns
    if stage.system.status() is not None:
        stage.sampler.status_of = stage.system.status


def _start_destination(stage: Stage) -> None:
    """The system's servers there, and what of the guest waits there."""
    stage.system.prepare()
    if stage.system.relocates:
        stage.log.event("destination-started", host="st_dst")
    stage.guest.arrive()
