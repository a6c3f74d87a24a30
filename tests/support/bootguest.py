"""A guest of one sector: it needs no operating system and is up as soon as the BIOS is.

It counts. For each number it writes a sector full of it to every disk, reads that back and
compares, and only then prints the number on the serial port: what is printed was acknowledged by
all disks. `F` is a failed request, `D` a sector that was read otherwise than written. The sectors
go round in 64 places, one to a block of 4 KiB.

The machine code is what GNU as makes of this (16 bit, at 0x7c00; registers as the BIOS takes them):

            cli; ds = es = ss = 0; sp = 0x7c00; sti; cld; ebp = 0
    next:   ebp++; 128 double words at 0x8000 = ebp; lba = 8 * (1 + (ebp & 63)); dl = 0x80
    disk:   int 0x13, ah 0x43 (write) from 0x8000; carry: failed
            int 0x13, ah 0x42 (read) to 0x8200; carry: failed; compare: differs
            dl++; next disk while dl - 0x80 < the number of disks (byte 0x475)
            print ebp as 8 hexadecimal digits and a line's end
            int 0x15, ah 0x86: wait for 5 ms; go to next
    failed: print F and stop;  differs: print D and stop
"""

import json
import re
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.servers import wait_for

PLACES, BLOCK_BYTES, SECTOR_BYTES = 64, 4096, 512
_CODE = bytes.fromhex(
    """
    fa31c08ed88ec08ed0bc007cfbfc6631ed6645bf0080b980006689e866f3ab6689e86683e03f664066c1e003
    66a3c07cb280c706bc7c0080b80043beb87c52cd135a7255c706bc7c0082b442beb87c52cd135a7244be0080
    bf0082b9800066f3a7753afec288d02c803a06750472c3b9080066c1c5046689e8240f04303c3976020427e8
    1f00e2eab00ae81800b48631c9ba8813cd15e978ffb046eb02b044e80300f4ebfd5250bafd03eca82074fb58
    baf803ee5ac3669010000100008000000000000000000000
    """
)


def make_disk(path: Path, size_bytes: int, filling: bytes = b"") -> None:
    """A disk that boots the guest; `filling` lies behind what the guest writes."""
    with path.open("wb") as image:
        image.truncate(size_bytes)
        image.write(_CODE.ljust(SECTOR_BYTES - 2, b"\0") + b"\x55\xaa")
        image.seek((1 + PLACES) * BLOCK_BYTES)
        image.write(filling)


def on_disk(image: Path) -> dict[int, int]:
    """The number in each of the places, 0 where none was written."""
    data = image.read_bytes()
    found = {}
    for place in range(PLACES):
        sector = data[(1 + place) * BLOCK_BYTES :][:SECTOR_BYTES]
        number = int.from_bytes(sector[:4], "little")
        assert sector == sector[:4] * (SECTOR_BYTES // 4), f"place {place} is torn"
        found[place] = number
    return found


def numbers_in(said: str) -> list[int]:
    """The numbers of whole lines; one that moves in the midst of a line ends it elsewhere."""
    return [int(line, 16) for line in re.findall(r"^([0-9a-f]{8})\n", said, re.MULTILINE)]


@dataclass
class Qemu:
    """A QEMU with the guest's disks at NBD sockets; `incoming` waits for a migration."""

    directory: Path
    name: str
    disks: list[Path]
    incoming: str | None = None
    flags: list[str] = field(default_factory=list)
    within: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.serial.unlink(missing_ok=True)
        self.qmp.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(lambda: self.qmp.exists() or not self.alive, "QEMU's QMP socket")
        assert self.alive, self.log.read_text()

    def _command(self) -> list[str]:
        argv = [
            *self.within,
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ]
        argv += ["-M", "pc", "-m", "16M", "-accel", "tcg,tb-size=16", "-name", self.name]
        argv += ["-serial", f"file:{self.serial}", "-qmp", f"unix:{self.qmp},server=on,wait=off"]
        for at, path in enumerate(self.disks):
            node = {
                "driver": "raw",
                "node-name": f"disk{at}",
                "cache": {"direct": True},
                "file": {
                    "driver": "nbd",
                    "server": {"type": "unix", "path": str(path)},
                    "reconnect-delay": 120,
                    "cache": {"direct": True},
                },
            }
            argv += ["-blockdev", json.dumps(node)]
            argv += ["-device", f"virtio-blk-pci,drive=disk{at},bootindex={at}"]
        if self.incoming is not None:
            argv += ["-incoming", self.incoming]
        return [*argv, *self.flags]

    @property
    def qmp(self) -> Path:
        return self.directory / f"{self.name}.qmp"

    @property
    def serial(self) -> Path:
        return self.directory / f"{self.name}.serial"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def said(self) -> str:
        """What the guest printed while it ran here."""
        return self.serial.read_text() if self.serial.exists() else ""

    @property
    def numbers(self) -> list[int]:
        """The numbers that were printed whole while the guest ran here."""
        return numbers_in(self.said)

    def goes_on(self, count: int = 5) -> None:
        """Wait until the guest has counted so much further here."""
        start = len(self.numbers)
        wait_for(
            lambda: len(self.numbers) >= start + count or not self.alive,
            f"the guest in {self.name} to go on; it said {self.said[-40:]!r}",
            60,
        )
        assert self.alive, self.log.read_text()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(3)
        self.kill()
