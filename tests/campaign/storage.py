"""A site's file system: ext4 on device-mapper on a file, which meets what disks meet.

Power failure: the file system is shut down as it stands (EXT4_IOC_SHUTDOWN, its journal as well),
so what was not written to the device is gone; it is then mounted anew. Who starts a server
afterwards gives it another boot's id (see server.py).
"""

import ctypes
import errno
import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from testbed.hosts.supervise import ProcessError, run

MKFS = ("-q", "-F", "-b", "4096", "-m", "0", "-J", "size=4")
MKFS_LATER = ("-E", "lazy_itable_init=0,nodiscard")
_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
_LEFT_FREE = 64 << 10


def make_template(path: Path, size_mib: int) -> None:
    """An empty file system, to be copied for each site."""
    with path.open("wb") as file:
        file.truncate(size_mib << 20)
    run(["mkfs.ext4", *MKFS, *MKFS_LATER, str(path)])


class Storage:
    """A file system of its own at `path`."""

    def __init__(self, name: str, directory: Path, template: Path) -> None:
        self.path = directory / name
        self.path.mkdir()
        self._name = f"{directory.name}-{name}"
        image = directory / f"{name}.fs"
        run(["cp", "--sparse=always", str(template), str(image)])
        self._image = image
        self._is_full = False
        self._loop = run(["losetup", "--find", "--show", str(image)]).strip()
        self._sectors = image.stat().st_size >> 9
        create = ["dmsetup", "create", self._name, "--noudevsync", "--table", self._table()]
        run(create)
        run(["dmsetup", "mknodes", self._name])
        self._mount()

    def _table(self, kind: str = "linear", *more: str) -> str:
        return " ".join(["0", str(self._sectors), kind, self._loop, "0", *more])

    @property
    def _device(self) -> str:
        return f"/dev/mapper/{self._name}"

    def _mount(self) -> None:
        run(["mount", "-t", "ext4", self._device, str(self.path)])

    def power_failure(self) -> None:
        """What is not on the device is lost. No server may run on it any more."""
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _SHUTDOWN, ctypes.c_uint32(_NO_LOG_FLUSH))
        finally:
            os.close(directory)
        self.healthy()
        run(["umount", str(self.path)])
        with suppress(ProcessError):  # 1: errors were corrected; what it can't, mount refuses
            run(["e2fsck", "-p", self._device])
        self._mount()
        if not self._is_full:  # that it was freed may be lost
            self.free()

    def fill(self, *, spared: bool) -> None:
        """No room is left; what the store keeps back only if that is `spared`."""
        self._is_full = True
        for spare in self.path.glob("*/spare") if not spared else ():
            spare.unlink()
        with (self.path / "ballast").open("wb") as file:
            length = 0
            step = 8 << 20
            while step >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), length, step)
                    length += step
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        return
                    step //= 2

    def free(self) -> None:
        """There is room again."""
        self._is_full = False
        with suppress(OSError):
            (self.path / "ballast").unlink(missing_ok=True)

    def slow(self, delay_ms: int) -> None:
        """Every request takes so much longer."""
        self._swap(self._table("delay", str(delay_ms)))

    def failing(self) -> None:
        """Writes fail."""
        self._swap(self._table("flakey", "0", "1", "1", "error_writes"))

    def healthy(self) -> None:
        """Nothing is slow, nothing fails."""
        self._swap(self._table())

    def _swap(self, table: str) -> None:
        run(["dmsetup", "load", self._name, "--table", table])
        run(["dmsetup", "resume", "--nolockfs", "--noudevsync", self._name])

    def remove(self) -> None:
        """Take it down."""
        with suppress(ProcessError):
            run(["umount", str(self.path)])
        with suppress(ProcessError):
            run(["dmsetup", "remove", "--noudevsync", "--retry", self._name])
        with suppress(ProcessError):
            run(["losetup", "-d", self._loop])
        self._image.unlink()
        shutil.rmtree(self.path, ignore_errors=True)
