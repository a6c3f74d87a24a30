"""What must hold at the end: file system, checksums, ledgers, on the device and in the image."""

from testbed.migration import disk
from testbed.migration.stage import Stage


def check_device(stage: Stage) -> None:
    """After the guest's end, what the destination's server serves; then all servers end."""
    stage.guest.leave()
    if not stage.system.relocates:
        stage.results.allocated_bytes = disk.allocated_bytes(stage.image)


def check_image(stage: Stage) -> None:
    """The image itself, without the software that served it."""
    stage.guest.check_image()
