"""One place: servers of disks, and a VM, all owned by one supervisor.

A site may be a host of its own (a network namespace, by the pid of a process in it) or this
machine, where every server has a port of its own.
"""

import itertools
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.guest import vm
from testbed.guest.image import Boot
from testbed.hosts import services
from testbed.hosts.supervise import Process, Supervisor, in_namespace


@dataclass(frozen=True)
class Server:
    """A target or a proxy that runs."""

    process: Process
    uri: str
    control: Path
    image: Path  # the raw disk, once all of it is there


class Site:
    """Where a guest can be; `address` is where its servers and its VM listen."""

    def __init__(
        self,
        name: str,
        directory: Path,
        supervisor: Supervisor,
        boot: Boot,
        *,
        address: str = "127.0.0.1",
        namespace_pid: int | None = None,
    ) -> None:
        self.name, self.directory, self.boot, self.address = name, directory, boot, address
        self.supervisor = supervisor
        self._pid = namespace_pid
        self._numbers = itertools.count(1)
        directory.mkdir(parents=True, exist_ok=True)

    def _name(self, what: str) -> str:
        return f"{self.name}-{what}{next(self._numbers)}"

    def free_port(self) -> int:
        """A TCP port of the site's address that nobody has at the moment."""

        def ask() -> int:
            with socket.socket() as probe:
                probe.bind((self.address, 0))
                return int(probe.getsockname()[1])

        return ask() if self._pid is None else in_namespace(self._pid, ask)

    def serve(self, name: str, argv: Sequence[str], port: int) -> Process:
        """Starts a server here and waits until it listens."""
        process = self.supervisor.start(name, argv, self._pid)
        pid = os.getpid() if self._pid is None else self._pid
        process.wait_until(lambda: services.is_listening(pid, port), f"{name} to listen on {port}")
        return process

    def target(self, disk: Path, store: Path | None = None) -> Server:
        """Serves a disk that is all here; with `store` it keeps maps, for a return trip."""
        name, port = self._name("target"), self.free_port()
        control = self.directory / f"{name}.sock"
        argv = services.target_command(disk, control, self.address, port)
        argv += [] if store is None else [f"store={store}"]
        return Server(self.serve(name, argv, port), self._uri(port), control, disk)

    def proxy(self, source: str, *keys: str, store: Path | None = None) -> Server:
        """Serves a disk that is at `source` still; `keys` are the plugin's parameters."""
        name, port = self._name("proxy"), self.free_port()
        store = store or self.directory / f"{name}.store"
        control = self.directory / f"{name}.sock"
        argv = services.proxy_command(store, source, control, self.address, keys, port=port)
        named = [Path(key[5:]) for key in keys if key.startswith("disk=")]
        image = named[0] if named else store / "disk.img"
        return Server(self.serve(name, argv, port), self._uri(port), control, image)

    def revived(self, server: Server) -> Server:
        """The server, killed (-9) and started again as it was."""
        self.supervisor.cut_off(server.process)
        port = int(server.uri.rpartition(":")[2])
        process = self.serve(self._name("revived"), server.process.argv, port)
        return replace(server, process=process)

    def _uri(self, port: int) -> str:
        return f"nbd://{self.address}:{port}"

    def vm(
        self,
        disks: Sequence[str],
        settings: vm.Settings | None = None,
        *,
        incoming: bool = False,
        state: Path | None = None,
    ) -> vm.Vm:
        """A QEMU here: a fresh guest, one that goes on from `state`, or one that waits for a guest
        to come to its `incoming`."""
        name = self._name("vm")
        listen = f"tcp:{self.address}:{self.free_port()}" if incoming else None
        return vm.start(
            self.supervisor,
            name,
            self.directory / name,
            self.boot,
            disks,
            settings=settings,
            incoming=listen,
            state=state,
            namespace_pid=self._pid,
        )
