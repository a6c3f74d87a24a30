"""What must hold at the end: file system, checksums, ledgers, on the device and in the image."""

from testbed.hosts import services
from testbed.migration import disk, proof
from testbed.migration.stage import Stage


def check_device(stage: Stage) -> None:
    """After the unmount, what the destination's server serves; then all servers end."""
    problems = proof.file_system(stage.nbd.device, stage.contents.offset_bytes)
    stage.log.check("file-system-device", problems, "e2fsck finds it clean, on the device")
    stage.system.keep_image(stage.nbd.device)
    services.detach(stage.servers, stage.nbd)
    if not stage.system.relocates:
        stage.results.allocated_bytes = disk.allocated_bytes(stage.image)


def check_image(stage: Stage) -> None:
    """The image itself, without the software that served it."""
    image, offset_bytes = stage.system.image, stage.contents.offset_bytes
    name = "the moved image" if stage.system.relocates else "the source's image"
    problems = proof.file_system(image, offset_bytes)
    stage.log.check("file-system-image", problems, f"e2fsck finds {name} clean")
    with stage.mounted(image, f"loop,ro,offset={offset_bytes}"):
        problems = disk.mismatches(stage.mount, stage.contents)
        stage.log.check("checksums-image", problems, stage.all_match(f"in {name}"))
        for workload in stage.load:
            verdict = workload.check(stage.mount, stage.logs)
            stage.log.check(workload.name, verdict.problems, f"{verdict.good}, in {name}")
