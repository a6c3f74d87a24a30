"""A guest that was booted once and kept: its memory, and the disks as they were at that moment.

Booting takes seconds here and a minute in the lab, where the emulator is itself emulated; going on
from a kept state takes a second or two. A state is kept by a live migration into a file, in which
the guest ends up stopped, so memory and disks are of one moment; it waits for its first command.

States are in the cache, named by a hash over all that decides them: the guest's image, what runs
inside, the machine, the disks, QEMU's version. The newest few are kept.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from testbed.guest import build, disks, vm
from testbed.guest.image import INSIDE, Boot, GuestImage
from testbed.guest.site import Site
from testbed.hosts.supervise import Supervisor, run
from testbed.lab.build import locked
from testbed.lab.image import cache_directory
from testbed.workloads import records

STATES_KEPT = 6
ROOT = disks.Contents()


@dataclass(frozen=True)
class Prepared:
    """A kept guest; `settings` is the machine it must go on in."""

    directory: Path
    settings: vm.Settings

    @property
    def state(self) -> Path:
        """Its memory, for QEMU's `-incoming`."""
        return self.directory / "state"

    @property
    def boot(self) -> Boot:
        return Boot(self.directory / "vmlinux", self.directory / "initramfs")

    @property
    def files(self) -> list[Path]:
        """All of it, to be taken elsewhere into one directory."""
        kept = [self.directory / f"disk{number}.img" for number in range(self.settings.disks)]
        return [self.boot.kernel, self.boot.initramfs, self.state, *kept]

    def disk(self, directory: Path, number: int = 0) -> Path:
        """A copy of one of its disks, `directory`/diskN.img, to be written."""
        directory.mkdir(parents=True, exist_ok=True)
        copy = directory / f"disk{number}.img"
        kept = self.directory / f"disk{number}.img"
        run(["cp", "--sparse=always", "--reflink=auto", str(kept), str(copy)])
        return copy


def prepared(
    contents: Sequence[disks.Contents] = (ROOT,),
    settings: vm.Settings | None = None,
    log: TextIO | None = None,
) -> Prepared:
    """The guest with these disks, booted now if it is not in the cache; LabError, ProcessError."""
    settings = settings or vm.Settings(disks=len(contents))
    image = build.ensure(log)
    cache = cache_directory().parent / "guest-states"
    cache.mkdir(parents=True, exist_ok=True)
    wanted = Prepared(cache / _name(image, contents, settings), settings)
    with locked(cache / "lock", log or sys.stderr):
        if wanted.directory.exists():
            os.utime(wanted.directory)
            return wanted
        with tempfile.TemporaryDirectory(prefix=".boot-", dir=cache) as work:
            _boot(Path(work), contents, image, settings)
            (Path(work) / "kept").rename(wanted.directory)
        _remove_old(cache)
    return wanted


def _name(image: GuestImage, contents: Sequence[disks.Contents], settings: vm.Settings) -> str:
    version = run(["qemu-system-x86_64", "--version"])
    inside = [path.read_text() for path in sorted(INSIDE.iterdir()) if path.is_file()]
    scripts = [*inside, Path(records.__file__).read_text(), Path(disks.__file__).read_text()]
    boot = Boot(Path("vmlinux"), Path("initramfs"))
    machine = vm.command(boot, settings, ["nbd://disk"] * len(contents), Path())
    parts = [image.name, version, *scripts, *machine[1:], *(repr(one) for one in contents)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _boot(
    work: Path, contents: Sequence[disks.Contents], image: GuestImage, settings: vm.Settings
) -> None:
    """Leaves the state and the disks in `work`/kept."""
    kept = work / "kept"
    kept.mkdir()
    boot = Prepared(kept, settings).boot
    boot.initramfs.write_bytes(image.first_boot())
    try:
        boot.kernel.hardlink_to(image.kernel)
    except OSError:  # a file system without links
        shutil.copy(image.kernel, boot.kernel)
    images = [kept / f"disk{number}.img" for number in range(len(contents))]
    for path, content in zip(images, contents, strict=True):
        disks.make(path, content, image)
    with Supervisor(work) as supervisor:
        site = Site("boot", work / "site", supervisor, boot)
        guest = site.vm([site.target(path).uri for path in images], settings)
        guest.wait_until_said("ready")
        guest.keep(kept / "state")
        guest.quit()


def _remove_old(cache: Path) -> None:
    states = [path for path in cache.iterdir() if path.is_dir() and path.name[0] != "."]
    states.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in states[STATES_KEPT:]:
        shutil.rmtree(path)
