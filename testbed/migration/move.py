"""The guest moves: what goes before it, its memory, and the switch."""

import time

from testbed.hosts import services
from testbed.migration.memory import MemoryCopy
from testbed.migration.stage import NBD, Stage


def move(stage: Stage) -> None:
    """What goes before the guest, the memory copy, and the switch at its end."""
    parameters = stage.parameters
    copy: MemoryCopy | None = None
    stage.go_on_until(max(0.0, parameters.switch_at_s - parameters.memory_copy_s) / 2)
    _start_destination(stage)
    stage.go_on_until(max(0.0, parameters.switch_at_s - parameters.memory_copy_s))
    stage.log.event("move-started")
    if stage.system.copies_first:
        stage.log.event("copy-first-started")
        stage.system.copy_first()
        stage.log.event("copy-first-done")
    if parameters.memory_bytes:
        stage.log.event("memory-copy-started", bytes=parameters.memory_bytes)
        copy = MemoryCopy(stage.sites, parameters.memory_bytes)
    while copy is not None and copy.running():
        stage.check_alive()
        time.sleep(0.01)
    if copy is not None:
        copy_s = copy.finish()
        stage.log.event("memory-copy-done", bytes=copy.size_bytes, copy_s=round(copy_s, 6))
        stage.results.memory_copy_s = copy_s
    else:
        stage.go_on_until(parameters.switch_at_s)
    _switch(stage)


def _start_destination(stage: Stage) -> None:
    """The system's servers there, and the device that the guest will move to."""
    stage.system.prepare()
    if stage.system.relocates:
        stage.log.event("destination-started", host="st_dst")
    stage.arriving = stage.attach(NBD[1], "vm_dst", stage.system.serves_at)


def _switch(stage: Stage) -> None:
    """The guest moves: what it wrote is at the source, what it will write is not."""
    _check_nothing_kept_early(stage)
    stage.device.load(stage.arriving)
    stage.log.event("switch-started")
    downtime_s = stage.device.exchange(before_resume=lambda: _hand_over(stage))
    stage.log.event("switch-done", downtime_s=round(downtime_s, 6))
    stage.results.downtime_s = downtime_s
    stage.source_mtime_ns = stage.image.stat().st_mtime_ns
    services.detach(stage.servers, stage.nbd)
    stage.nbd = stage.arriving
    if stage.system.status() is not None:
        stage.sampler.status_of = stage.system.status


def _check_nothing_kept_early(stage: Stage) -> None:
    """What a proxy keeps while the guest writes at the source must be dropped at the switch."""
    status = stage.system.status()
    if status is not None and not stage.system.copies_ahead:
        kept = status["present_blocks"]
        problems = [f"{kept} blocks were kept while the guest was at the source"]
        stage.log.check("nothing-kept-early", problems[: int(kept > 0)], "no block was")


def _hand_over(stage: Stage) -> None:
    """The guest stands still: authority over the disk moves with it."""
    start_s = time.monotonic()
    stage.system.hand_over()
    stage.results.handover_s = time.monotonic() - start_s
