"""After the guest its disk: the background copy, until the source is shut off."""

import time

from testbed.migration import disk, record
from testbed.migration.completion import Completion
from testbed.migration.stage import CheckFailed, Stage

RELOCATION_LIMIT_S = 3600.0
#: of a proxy's status: what the handover was like
HANDOVER = ("seal_s", "drop_s", "write_waited_s", "dropped_blocks", "brought_bytes")


def relocate(stage: Stage) -> None:
    """The background copy, until the source can be shut off."""
    if stage.system.has_all:
        stage.log.event("relocation-complete")
        stage.results.relocated(None, time.monotonic())
    else:
        _copy_the_rest(stage)
    _shut_off_source(stage)


def _copy_the_rest(stage: Stage) -> None:
    parameters = stage.parameters
    if parameters.background == "on":
        stage.go_on_until(stage.log.times_s()["switch-done"] + parameters.background_delay_s)
    else:
        stage.go_on_until(parameters.duration_s)
    stage.results.background_started(_sample_presence(stage))
    stage.log.event("background-started")
    completion = Completion(stage.system.copy)
    deadline_s = time.monotonic() + RELOCATION_LIMIT_S
    while completion.at_s is None:
        stage.check_alive()
        completion.check()
        if time.monotonic() > deadline_s:
            raise CheckFailed(f"not complete after {RELOCATION_LIMIT_S:g} s")
        time.sleep(0.02)
    status = _sample_presence(stage)
    stage.sampler.status_of = None
    known = status or {}
    fetched = [key for key in record.PRESENCE if "bytes" in key]
    told = {key: known[key] for key in (*fetched, *HANDOVER) if key in known}
    stage.log.event("relocation-complete", **told)
    stage.results.relocated(status, completion.at_s)


def _sample_presence(stage: Stage) -> record.Status | None:
    return stage.sampler.sample_presence() if stage.sampler.status_of is not None else None


def _shut_off_source(stage: Stage) -> None:
    stage.system.shut_off_source()
    stage.log.event("source-off")
    stage.results.allocated_bytes = disk.allocated_bytes(stage.image)
    written = stage.image.stat().st_mtime_ns != stage.source_mtime_ns
    problems = ["the source's image was written after the switch"][: int(written)]
    stage.log.check("source-untouched", problems, "nothing was written to it after the switch")
