"""What the switch and the end have in common, whatever the guest is."""

import time

from testbed.hosts import proof, services
from testbed.migration.stage import Stage


def check_nothing_kept_early(stage: Stage) -> None:
    """What a proxy keeps while the guest writes at the source must be dropped at the switch."""
    status = stage.system.status()
    if status is not None and not stage.system.copies_ahead:
        kept = status["present_blocks"]
        problems = [f"{kept} blocks were kept while the guest was at the source"]
        stage.log.check("nothing-kept-early", problems[: int(kept > 0)], "no block was")


def hand_over(stage: Stage) -> None:
    """The guest stands still: authority over the disk moves with it."""
    start_s = time.monotonic()
    stage.system.hand_over()
    stage.results.handover_s = time.monotonic() - start_s


def keep_image(stage: Stage, nbd: services.KernelNbd, offset_bytes: int = 0) -> None:
    """What the destination's server serves, once the guest has let go of it."""
    problems = proof.file_system(nbd.device, offset_bytes)
    stage.log.check("file-system-device", problems, "e2fsck finds it clean, on the device")
    stage.system.keep_image(nbd.device)
    services.detach(stage.servers, nbd)


def name_of_image(stage: Stage) -> str:
    return "the moved image" if stage.system.relocates else "the source's image"
