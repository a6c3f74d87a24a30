"""A QEMU that runs the guest: fresh, waiting for one that comes, or going on from a kept state.

The machine is the same at all hosts and pinned to a version, as live migration wants it. Disks are
NBD servers, by URI. A server that is away for a moment is waited for (`reconnect-delay`); an error
that remains is reported to the guest (`werror=report`), because these tests want to know. Who runs
a guest that must not see one takes `werror=stop`: QEMU then pauses it until somebody says `cont`.

What the guest says is in `report` and on `console`, files of this host: QEMU appends to them while
the guest runs here.
"""

import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from relocator.moving.monitor import Monitor
from testbed.guest import report
from testbed.guest.image import Boot
from testbed.hosts import qmp
from testbed.hosts.supervise import (
    Process,
    ProcessError,
    Supervisor,
    is_listening,
    is_listening_at,
    wait_until,
)

MACHINE = "pc-i440fx-7.2"
# Plain: and without ERMS, with which copying memory would be a byte an instruction.
PROCESSOR = "qemu64"
KERNEL_COMMAND_LINE = "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off nokaslr"
RECONNECT_S = 30
READY_S = 240.0


@dataclass(frozen=True)
class Settings:
    """The machine: equal at both ends of a migration."""

    memory_mib: int = 128
    disks: int = 1
    agent: bool = False  # a port for qemu-guest-agent, which must be on the guest's disk
    on_error: str = "report"  # QEMU's werror and rerror: report, stop, enospc, ignore
    accelerator: tuple[str, ...] = ("-accel", "tcg,thread=single,tb-size=64")


def server_of(uri: str) -> dict[str, object]:
    """QEMU's block driver for a URI: `nbd`, over TCP or a Unix socket, or `iscsi` for a LUN."""
    parts = urlsplit(uri)
    if parts.scheme == "iscsi":
        target, lun = parts.path[1:].split("/")
        portal = {"driver": "iscsi", "transport": "tcp", "portal": parts.netloc}
        return portal | {"target": target, "lun": int(lun)}  # which reconnects by itself
    if parts.scheme == "nbd+unix":
        path = parse_qs(parts.query)["socket"][0]
        server: dict[str, object] = {"type": "unix", "path": path}
    elif parts.scheme == "nbd" and parts.hostname:
        server = {"type": "inet", "host": parts.hostname, "port": str(parts.port or 10809)}
    else:
        known = "nbd://HOST[:PORT][/EXPORT], nbd+unix:///?socket=PATH or iscsi://HOST:PORT/IQN/LUN"
        raise ValueError(f"uri={uri!r}: {known}")
    node: dict[str, object] = {"driver": "nbd", "server": server, "reconnect-delay": RECONNECT_S}
    return node | ({"export": parts.path[1:]} if len(parts.path) > 1 else {})


def command(boot: Boot, settings: Settings, disks: Sequence[str], directory: Path) -> list[str]:
    """QEMU's command line but for how it begins; its files and sockets are in `directory`."""
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-machine", MACHINE, "-cpu", PROCESSOR, "-smp", "1", "-no-reboot"]
    argv += ["-m", f"{settings.memory_mib}M", *settings.accelerator]
    argv += ["-kernel", str(boot.kernel), "-initrd", str(boot.initramfs)]
    argv += ["-append", KERNEL_COMMAND_LINE, "-serial", f"file:{directory / 'console'}"]
    argv += ["-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"]
    argv += ["-device", "virtio-serial-pci,id=ports"]
    argv += ["-chardev", f"file,id=report,path={directory / 'report'}"]
    argv += ["-device", "virtserialport,bus=ports.0,nr=1,chardev=report,name=report"]
    control = f"socket,id=control,path={directory / 'control'},server=on,wait=off"
    argv += ["-chardev", control]
    argv += ["-device", "virtserialport,bus=ports.0,nr=2,chardev=control,name=control"]
    if settings.agent:
        argv += ["-chardev", f"socket,id=agent,path={directory / 'agent'},server=on,wait=off"]
        port = "virtserialport,bus=ports.0,nr=3,chardev=agent,name=org.qemu.guest_agent.0"
        argv += ["-device", port]
    for number, uri in enumerate(disks):
        cache = {"direct": True, "no-flush": False}
        server = server_of(uri) | {"node-name": f"server{number}", "cache": cache}
        disk = {"driver": "raw", "node-name": f"disk{number}", "file": f"server{number}"}
        argv += ["-blockdev", json.dumps(server), "-blockdev", json.dumps(disk | {"cache": cache})]
        policy = f"werror={settings.on_error},rerror={settings.on_error}"
        argv += ["-device", f"virtio-blk-pci,id=vd{number},drive=disk{number},{policy}"]
    return argv


@dataclass
class Vm:
    """A QEMU that was started; `directory` holds its monitor `qmp`, its `report`, its `console`."""

    process: Process
    directory: Path
    incoming: str | None  # where it listens for a guest
    _supervisor: Supervisor
    _monitor: Monitor | None = field(default=None, repr=False)
    _since: int = 0  # the number of the monitor's first event of the last migration

    @property
    def qmp(self) -> Path:
        """The monitor's socket; it takes one client at a time, so `monitor` may not be in use."""
        return self.directory / "qmp"

    @property
    def monitor(self) -> Monitor:
        """Our connection to it, made when first used; `release_monitor` gives it up."""
        if self._monitor is None:
            self._monitor = qmp.connect(self.qmp)
        return self._monitor

    def release_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    @property
    def console(self) -> str:
        """What the kernel and init said while the guest was here."""
        path = self.directory / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def report(self) -> bytes:
        """What the workload said while the guest was here."""
        path = self.directory / "report"
        return path.read_bytes() if path.exists() else b""

    def tell(self, *commands: str) -> None:
        """Gives the guest commands (inside/work.py)."""
        before = self.report.count(b"told,")
        wanted = before + len(commands)
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self.directory / "control"))
            link.sendall("".join(f"{command}\n" for command in commands).encode())
            # What the guest has not read yet is lost if we go before.
            self._wait(lambda: self.report.count(b"told,") >= wanted, "an answer", READY_S)

    def wait_running(self) -> None:
        """Waits until a guest that goes on from a kept state runs."""
        self._wait(lambda: self.monitor.call("query-status")["running"], "the guest", READY_S)

    def wait_for_acknowledged(self, count: int, timeout_s: float = READY_S) -> None:
        """Waits until the guest has acknowledged so many records here."""
        self._wait(lambda: self.report.count(b"ack,") >= count, f"{count} records", timeout_s)

    def wait_until_said(self, line: str, timeout_s: float = READY_S) -> None:
        """Waits for a line of the report."""
        self._wait(lambda: line.encode() in self.report.splitlines(), f"'{line}'", timeout_s)

    def _wait(self, ready: Callable[[], bool], what: str, timeout_s: float) -> None:
        def well() -> bool:
            if found := report.errors(self.report, self.console):
                raise ProcessError(f"{self.process.name}: the guest says: {'; '.join(found)}")
            if ready():
                return True
            self.process.check()
            return False

        wait_until(well, f"{what} at {self.process.name}", timeout_s)

    def migrate(self, uri: str, *capabilities: str, **parameters: int) -> None:
        """Begins a migration to `uri`, the other's `incoming` or a command."""
        names = ("events", *capabilities)
        named = [{"capability": name, "state": True} for name in names]
        self.monitor.call("migrate-set-capabilities", capabilities=named)
        if parameters:
            self.monitor.call("migrate-set-parameters", **parameters)
        self._since = len(self.monitor.events)
        self.monitor.call("migrate", uri=uri)

    def wait_migrated(self, wanted: str = "completed", timeout_s: float = 120.0) -> None:
        """Waits until the migration is in that state, by QEMU's events: asking takes processor."""
        ends = (wanted, "failed", "completed")
        ended = qmp.await_event(self.monitor, "MIGRATION", timeout_s, *ends, since=self._since)
        if ended.data["status"] != wanted:
            raise ProcessError(f"{self.process.name}: the migration has {ended.data['status']}")

    def keep(self, state: Path) -> None:
        """Writes memory and devices to a file; the guest stands still from then on."""
        self.migrate(f"exec:cat > {state}", max_bandwidth=1 << 32)
        self.wait_migrated()

    def shut_down(self, timeout_s: float = 120.0) -> None:
        """Has the guest make its disks clean and power off; QEMU ends by itself."""
        self.release_monitor()
        self.tell("stop")
        self._supervisor.wait(self.process, timeout_s)

    def kill(self) -> None:
        """Ends QEMU whatever it waits for: its guest has gone, and so may its disk's server."""
        self.release_monitor()
        self._supervisor.cut_off(self.process)

    def quit(self) -> None:
        """Ends QEMU as it stands: its guest has gone elsewhere, or is to be lost."""
        self.release_monitor()
        self._supervisor.stop(self.process)


def start(
    supervisor: Supervisor,
    name: str,
    directory: Path,
    boot: Boot,
    disks: Sequence[str],
    *,
    settings: Settings | None = None,
    incoming: str | None = None,
    state: Path | None = None,
    namespace_pid: int | None = None,
) -> Vm:
    """Starts a QEMU; `incoming` waits for a guest there, `state` goes on from a kept one."""
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in ("console", "report", "qmp", "control", "agent"):
        (directory / leftover).unlink(missing_ok=True)
    argv = command(boot, settings or Settings(disks=len(disks)), disks, directory)
    if state is not None:
        argv += ["-incoming", f"exec:cat {state}"]
    elif incoming is not None:
        argv += ["-incoming", incoming]
    # A QEMU whose guest does not come ends with status 1.
    statuses = (0, -signal.SIGTERM) if incoming is None else (0, -signal.SIGTERM, 1)
    process = supervisor.start(name, argv, namespace_pid, good_statuses=statuses)
    sockets = [directory / "qmp", directory / "control"]
    process.wait_until(
        lambda: all(is_listening_at(one, process.pid) for one in sockets), f"{name}'s sockets"
    )
    if incoming is not None and state is None:
        pid = os.getpid() if namespace_pid is None else namespace_pid
        port = int(incoming.rpartition(":")[2])
        process.wait_until(lambda: is_listening(pid, port), f"{name} to wait for a guest")
    return Vm(process, directory, incoming, supervisor)
