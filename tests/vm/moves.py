"""What the tests of this directory do: a guest at work, its moves, and the proof at the end.

with World(directory, origin) as world:
    first = world.target("a")                 its disks, served at site a
    guest = world.wake("a", first)            the kept guest goes on there, and works
    ...
    world.prove(images)                       shut down; everything is as it must be
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from relocator.client import Client
from testbed.guest import report
from testbed.guest.prepared import Prepared
from testbed.guest.site import Server, Site
from testbed.guest.vm import Vm
from testbed.hosts.supervise import Supervisor, wait_until

PAUSE = "pause-before-switchover"
FAST = {"max_bandwidth": 1 << 30}
WORK_RATE = 40  # records a second, of each disk


class World:
    """Three sites on this machine, one guest, and the way that it took."""

    def __init__(self, directory: Path, origin: Prepared) -> None:
        self.directory, self.origin = directory, origin
        self.supervisor = Supervisor(directory)
        self.sites = {
            name: Site(name, directory / name, self.supervisor, origin.boot) for name in "abc"
        }
        self.way: list[Vm] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for vm in self.way:
            vm.release_monitor()
        self.supervisor.__exit__(kind, error, trace)

    def target(self, name: str, number: int = 0, store: Path | None = None) -> Server:
        """One of the guest's disks as it was kept, served at a site."""
        site = self.sites[name]
        return site.target(self.origin.disk(site.directory, number), store)

    def wake(self, name: str, *disks: Server) -> Vm:
        """The guest goes on at a site, and has begun to work."""
        uris = [disk.uri for disk in disks]
        guest = self.sites[name].vm(uris, self.origin.settings, state=self.origin.state)
        self.way.append(guest)
        for number in range(len(disks)):
            guest.tell(f"write {number} {WORK_RATE} {number + 1}", f"read {number} 25 {number + 9}")
        guest.wait_for_acknowledged(20)
        return guest

    def arriving(self, name: str, *disks: Server) -> Vm:
        """A QEMU at a site that waits for the guest, on its disks there."""
        uris = [disk.uri for disk in disks]
        return self.sites[name].vm(uris, self.origin.settings, incoming=True)

    def move(self, other: Vm, *proxies: Server) -> None:
        """The guest goes to `other`; at the pause, authority over its disks does."""
        guest = self.way[-1]
        assert other.incoming is not None
        guest.migrate(other.incoming, PAUSE, **FAST)
        guest.wait_migrated("pre-switchover")
        for proxy in proxies:
            control(proxy, "activate")
        guest.monitor.call("migrate-continue", state="pre-switchover")
        guest.wait_migrated()
        self.arrived(other)

    def arrived(self, other: Vm) -> None:
        """The guest works at `other` now; what it left is ended."""
        other.wait_for_acknowledged(20)
        self.way[-1].quit()
        self.way.append(other)

    def prove(self, *disks: Server, is_down: bool = False) -> report.Report:
        """The guest shuts down, its servers end; everything is as it must be. What it did."""
        if not is_down:
            self.way[-1].shut_down()
        for disk in disks:
            self.supervisor.stop(disk.process)
        texts, consoles = [vm.report for vm in self.way], [vm.console for vm in self.way]
        assert report.problems(texts, consoles, [disk.image for disk in disks]) == []
        return report.parse(texts)


def control(server: Server, verb: str, **arguments: Any) -> dict[str, Any]:
    """What a server answers to a verb on its control socket."""
    return Client(server.control).call(verb, patience_s=None, **arguments)


def fetched_bytes(status: dict[str, Any]) -> int:
    """Payload that came over the WAN."""
    return int(status["on_demand_bytes"]) + int(status["background_bytes"])


def wait_for_state(server: Server, states: Sequence[str]) -> None:
    """Waits until a disk is in one of these states."""
    wait_until(lambda: control(server, "status")["state"] in states, f"{states}", 60)
