"""Command lines of the servers, and the guest's device.

The guest's disk is a device-mapper table of one line, `linear` over a kernel nbd device. At the
switch the line is exchanged for one over another nbd device: the file system, the page cache and
the programs stay, as they would in the memory of a VM that migrates live.

Two traps: the nbd driver scans partitions when a device is attached unless it was loaded with
`max_part=0`, and a proxy that kept what the scan reads *before* the switch would keep stale data;
and in a network namespace nbd-client must use ioctl (`-L`), its netlink family knows only one.
"""

import atexit
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from relocator.source.key import make as make_key
from testbed.hosts.supervise import Process, ProcessError, Supervisor, is_listening, run

PORT = 10809
CEILING_PORT = 10810  # a second target, only for measuring nbdcopy: it must not heat the first
SECTOR_BYTES = 512
PLUGIN = Path(__file__).resolve().parents[2] / "relocator" / "plugin.py"
TARGET_THREADS, PROXY_THREADS = 1, 8  # nbdkit threads a connection: only a proxy waits for the WAN
MODULES = ("sch_netem", "veth", "bridge", "loop", "dm_mod", "ext4")


def prepare_kernel() -> None:
    """Loads what is needed; an nbd driver that would scan partitions is loaded again, if unused."""
    run(["modprobe", "-a", *MODULES])
    max_part = Path("/sys/module/nbd/parameters/max_part")
    if max_part.exists() and max_part.read_text().strip() != "0":
        try:
            run(["modprobe", "-r", "nbd"])
        except ProcessError as error:
            raise ProcessError(
                "nbd is in use and loaded without max_part=0: it would read from the proxy before "
                f"the switch; free its devices first\n{error}"
            ) from error
    if not max_part.exists():
        run(["modprobe", "nbd", "nbds_max=4", "max_part=0"])


@functools.cache
def key_file() -> Path:
    """The secret of both sites, for the servers that this process starts."""
    path = Path(tempfile.gettempdir()) / f"relocator-{os.getpid()}.key"
    path.unlink(missing_ok=True)  # of a process that was killed
    make_key(path)
    atexit.register(path.unlink, missing_ok=True)
    return path


def _nbdkit(port: int, address: str, threads: int) -> list[str]:
    listen = ["-i", address, "-p", str(port)]
    plugin = ["python", str(PLUGIN), f"key={key_file()}"]
    return ["nbdkit", "-f", "-t", str(threads), *listen, *plugin]


def target_command(disk: Path, control: Path, address: str, port: int = PORT) -> list[str]:
    """The server at the source."""
    return [*_nbdkit(port, address, TARGET_THREADS), f"disk={disk}", f"control={control}"]


def target_by_command(
    disk: Path, control: Path, address: str, congestion: str, port: int = PORT
) -> list[str]:
    """The server at the source as `relocator target` starts it, with a congestion control."""
    relocator = [sys.executable, "-m", "relocator.cli.main", "target", str(disk)]
    listen = ["--listen", f"{address}:{port}", "--control", str(control)]
    return [*relocator, *listen, "--key", str(key_file()), "--congestion", congestion]


def store_command(store: Path, control: Path, address: str) -> list[str]:
    """The server at the source, of a disk that has moved before: its store is complete."""
    return [*_nbdkit(PORT, address, TARGET_THREADS), f"store={store}", f"control={control}"]


def file_command(disk: Path, address: str, port: int) -> list[str]:
    """nbdkit's own file server, the plain alternative."""
    return ["nbdkit", "-f", "-i", address, "-p", str(port), "file", str(disk)]


def relay_command(source: str, address: str, *filtered: str) -> list[str]:
    """A server that passes everything on to another one.

    `filtered` is nbdkit's filter on the way, and that filter's parameters.
    """
    filters = [f"--filter={name}" for name in filtered[:1]]
    listen = ["nbdkit", "-f", "-i", address, "-p", str(PORT)]
    return [*listen, *filters, "nbd", f"uri={source}", *filtered[1:]]


def proxy_command(
    store: Path,
    source: str,
    control: Path,
    address: str,
    options: Sequence[str],
    *,
    port: int = PORT,
) -> list[str]:
    """The server at the destination; `options` are further KEY=VALUE parameters."""
    keys = [f"store={store}", f"source={source}", f"control={control}"]
    return [*_nbdkit(port, address, PROXY_THREADS), *keys, *options]


def start_server(
    supervisor: Supervisor, name: str, argv: Sequence[str], namespace_pid: int, port: int = PORT
) -> Process:
    """Starts an NBD server and waits until it listens."""
    process = supervisor.start(name, argv, namespace_pid)
    process.wait_until(lambda: is_listening(namespace_pid, port), f"{name} to listen on {port}")
    return process


@dataclass(frozen=True, slots=True)
class KernelNbd:
    """A kernel nbd device and the nbd-client that drives it."""

    device: Path
    client: Process

    @property
    def sectors(self) -> int:
        return _sectors(self.device)


def _sectors(device: Path) -> int:
    return int(Path(f"/sys/block/{device.name}/size").read_text())


def attach(supervisor: Supervisor, device: Path, address: str, namespace_pid: int) -> KernelNbd:
    """Connects a kernel nbd device to the server; with `-n` the client stays ours to end.

    Blocks of 4096 bytes make the file system's block the smallest request there is.
    """
    argv = ["nbd-client", "-L", "-n", "-b", "4096", address, str(PORT), str(device)]
    client = supervisor.start(f"nbd-client-{device.name}", argv, namespace_pid)
    client.wait_until(lambda: _sectors(device) > 0, f"{device} to be attached")
    return KernelNbd(device, client)


def detach(supervisor: Supervisor, nbd: KernelNbd) -> None:
    """Disconnects the device; its client then ends by itself."""
    run(["nbd-client", "-d", str(nbd.device)])
    supervisor.wait(nbd.client, timeout_s=30)


@dataclass(frozen=True, slots=True)
class GuestDevice:
    """The guest's file system: a device-mapper device of one line, from where its partition begins.

    The line leads past the partition table, as a kernel that has read the table would.
    """

    offset_bytes: int = 0
    name: str = "guest"

    @property
    def path(self) -> Path:
        return Path("/dev/mapper") / self.name

    def _table(self, nbd: KernelNbd) -> str:
        start = self.offset_bytes // SECTOR_BYTES
        return f"0 {nbd.sectors - start} linear {nbd.device} {start}"

    def create(self, nbd: KernelNbd) -> None:
        run(["dmsetup", "create", self.name, "--noudevsync", "--table", self._table(nbd)])
        run(["dmsetup", "mknodes", self.name])

    def load(self, nbd: KernelNbd) -> None:
        """Prepares the exchange: the new line waits in the inactive slot."""
        run(["dmsetup", "load", self.name, "--table", self._table(nbd)])

    def exchange(self, before_resume: Callable[[], None] = lambda: None) -> float:
        """Puts the loaded line in place and returns the seconds in which the device stood still.

        Suspending waits for what is in flight; the file system is not frozen (`--nolockfs`): its
        dirty pages stay where they are, as in a VM that moves.
        """
        start_s = time.monotonic()
        run(["dmsetup", "suspend", "--nolockfs", "--noudevsync", self.name])
        before_resume()
        run(["dmsetup", "resume", "--noudevsync", self.name])
        return time.monotonic() - start_s

    def remove(self) -> None:
        run(["dmsetup", "remove", "--noudevsync", "--retry", self.name])
        run(["dmsetup", "mknodes"])

    def exists(self) -> bool:
        return any(
            path.read_text().strip() == self.name
            for path in Path("/sys/block").glob("dm-*/dm/name")
        )


@contextmanager
def mounted(device: Path, point: Path, options: str, file_system: str = "ext3") -> Iterator[Path]:
    """Mounts a file system, and unmounts it."""
    point.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", file_system, "-o", options, str(device), str(point)])
    try:
        yield point
    finally:
        if point.is_mount():
            run(["umount", str(point)])
