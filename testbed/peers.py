"""The systems that relocate a disk in `testbed.copybench`: how each is started and made to copy.

A system has the URI that its clients use (None: it can't have any), a `copy` that returns when all
of the disk is at the destination, and a `status` of its own figures. Servers at the destination
listen on Unix sockets, which network namespaces don't separate.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relocator.cli.client import Client
from testbed import qemu, services
from testbed.supervise import Supervisor, run
from testbed.topology import ADDRESS, Sites

COPY_LIMIT_S = 3600.0
LOCAL_S = 10.0


def _no_status() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class System:
    """A started system."""

    uri: str | None
    copy: Callable[[], None]
    status: Callable[[], dict[str, Any]] = _no_status


@dataclass(frozen=True, slots=True)
class Place:
    """Where a system is started: the sites, the image at the source, a work directory."""

    supervisor: Supervisor
    sites: Sites
    work: Path
    image: Path
    size_bytes: int
    proxy_options: tuple[str, ...] = ()  # KEY=VALUE, for our own proxy

    @property
    def source_uri(self) -> str:
        return f"nbd://{ADDRESS['st_src-wan']}:{services.PORT}"

    @property
    def socket(self) -> Path:
        return self.work / "served.nbd"

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    def start_source(self, argv: list[str]) -> None:
        services.start_server(self.supervisor, "source", argv, self.sites.pids["st_src"])

    def start_file_source(self) -> None:
        address = ADDRESS["st_src-wan"]
        self.start_source(services.file_command(self.image, address, services.PORT))

    def serve(self, name: str, argv: list[str]) -> None:
        """A server at the destination, once its socket is there."""
        process = self.supervisor.start(name, argv, self.sites.pids["st_dst"])
        process.wait_until(self.socket.exists, f"{name}'s socket")

    def at_destination(self, argv: list[str]) -> None:
        run(argv, self.sites.pids["st_dst"], timeout_s=COPY_LIMIT_S)


def start_local(place: Place) -> System:
    """The same clients on a disk that is here."""
    place.serve("local", ["nbdkit", "-f", "-U", str(place.socket), "file", str(place.image)])
    return System(place.uri, lambda: time.sleep(LOCAL_S))


def start_nbdcopy(place: Place) -> System:
    place.start_file_source()
    return System(None, lambda: place.at_destination(["nbdcopy", place.source_uri, "null:"]))


def start_cow(place: Place, flags: tuple[str, ...] = ()) -> System:
    place.start_file_source()
    argv = ["nbdkit", "-f", "-U", str(place.socket), "--filter=cow", "nbd"]
    place.serve("cow", [*argv, f"uri={place.source_uri}", "cow-on-read=true"])
    return System(place.uri, lambda: place.at_destination(["nbdcopy", *flags, place.uri, "null:"]))


def start_relocator(place: Place) -> System:
    command = services.target_command(
        place.image, place.work / "target.sock", ADDRESS["st_src-wan"]
    )
    place.start_source(command)
    return _proxy(place)


def start_relocator_file(place: Place) -> System:
    place.start_file_source()
    return _proxy(place)


def _proxy(place: Place) -> System:
    control = place.work / "proxy.control"
    argv = [sys.executable, "-m", "relocator.cli.main", "proxy", str(place.work / "store")]
    argv += [place.source_uri, "--background", "off"]
    argv += ["--socket", str(place.socket), "--control", str(control)]
    argv += [f"--{option}" for option in place.proxy_options]
    place.serve("proxy", argv)
    client = Client(control)
    client.call("status")

    def copy() -> None:
        client.call("set", background="on")
        client.call("wait", patience_s=None, timeout_s=COPY_LIMIT_S)

    return System(place.uri, copy, lambda: client.call("status"))


def start_qemu(place: Place) -> System:
    place.start_file_source()
    monitor = place.work / "qmp"
    listen = f"addr.type=unix,addr.path={place.socket}"
    place.serve("qemu", qemu.streaming(place.work, place.size_bytes, monitor, listen))
    qmp = qemu.Qmp(monitor)
    return System(place.uri, lambda: qemu.stream(qmp))


SYSTEMS: dict[str, Callable[[Place], System]] = {
    "local": start_local,
    "nbdcopy": start_nbdcopy,
    "nbdkit-cow": start_cow,
    "nbdkit-cow-all": lambda place: start_cow(place, ("--no-extents",)),
    "qemu": start_qemu,
    "relocator": start_relocator,
    "relocator-file": start_relocator_file,
}
