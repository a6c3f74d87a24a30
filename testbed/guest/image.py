"""The guest's image in the cache: what it is made of, and under which name.

As with the lab's image, the name is a hash over the recipe, and nothing of the host goes in. Three
things come out: the kernel, the files of the first boot stage, and the system: what stands on the
root disk beside the workload's files. The scripts that run in the guest (inside/) are no part of
it: they go onto the disks and into the initramfs as they are; a changed one needs no new build.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from testbed.lab import cpio
from testbed.lab.image import SUITE, Image, cache_directory, mirror

INSIDE = Path(__file__).parent / "inside"

# What each package is for stands beside it, as in scripts/install.
PACKAGES = (
    "linux-image-amd64",  # the kernel, and its modules for virtio and ext4
    "busybox-static",  # both boot stages
    "python3-minimal",  # the workload's interpreter
    "libpython3.11-stdlib",  # of it one module, mmap: for buffers that O_DIRECT takes
    "fio",  # load, where a test asks for it
    "qemu-guest-agent",  # freezes the file systems, where a test asks for it
)
#: those that the guest loads, besides what they need themselves
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4", "crc32c_generic")


@dataclass(frozen=True)
class Boot:
    """What QEMU boots, as files."""

    kernel: Path
    initramfs: Path


@dataclass(frozen=True)
class GuestImage(Image):
    """A built guest in the cache."""

    @property
    def system(self) -> Path:
        """What goes onto the root disk: a directory tree."""
        return self.directory / "system"

    @property
    def fio(self) -> Path:
        """fio and its libraries, which go onto the root disk only if asked for."""
        return self.directory / "fio"

    @property
    def agent(self) -> Path:
        """qemu-guest-agent and its libraries, likewise."""
        return self.directory / "agent"

    def first_boot(self) -> bytes:
        """The first boot stage: busybox, modules in the order to load them, inside/init."""
        files = {
            "init": cpio.File((INSIDE / "init").read_bytes(), executable=True),
            "bin/busybox": cpio.File((self.first_stage / "busybox").read_bytes(), executable=True),
        }
        for path in sorted((self.first_stage / "modules").iterdir()):
            files[f"modules/{path.name}"] = cpio.File(path.read_bytes())
        return cpio.archive(files)


def current() -> GuestImage:
    """The image that this state of the project uses, built or not."""
    recipe = (Path(__file__).parent / "build.py").read_text()
    parts = [recipe, SUITE, *mirror(), *PACKAGES, *MODULES]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return GuestImage(cache_directory().parent / "guest" / name)
