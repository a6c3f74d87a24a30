"""Two sites and the link between them, as a test sees them.

Each site is a host of its own: its programs see its addresses only, and reach the other site over
the emulated WAN. Files are shared, so each site has a directory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from testbed.hosts.supervise import (
    Process,
    Supervisor,
    in_namespace,
    is_listening,
    run,
)
from testbed.network import links, topology, wan
from testbed.network.wan import LinkProfile

T = TypeVar("T")


@dataclass(frozen=True)
class Site:
    """One site's host. `address` is how the other site reaches it, `directory` is for its files."""

    name: str
    address: str
    directory: Path
    pid: int
    _supervisor: Supervisor

    def run(self, argv: Sequence[object], timeout_s: float = 120) -> str:
        """Runs a command there to its end; what it printed. ProcessError if it fails."""
        return run([str(word) for word in argv], self.pid, timeout_s)

    def start(
        self, argv: Sequence[object], port: int | None = None, name: str | None = None
    ) -> Process:
        """Starts a program there that stays, and waits until it listens on a TCP port.

        It is ended, by SIGTERM, when the test is over; that it ends before is an error. Its output
        is in the test's files, as `SITE-NAME.log`.
        """
        words = [str(word) for word in argv]
        name = f"{self.name}-{name or Path(words[0]).name}"
        process = self._supervisor.start(name, words, self.pid)
        if port is not None:
            what = f"port {port} of the {self.name} site"
            process.wait_until(lambda: is_listening(self.pid, port), what)
        return process

    def stop(self, process: Process) -> None:
        """Ends a program now, by SIGTERM."""
        self._supervisor.stop(process)

    def kill(self, process: Process) -> None:
        """Ends a program now, as a power failure would."""
        self._supervisor.cut_off(process)

    def call(self, action: Callable[[], T]) -> T:
        """The result of a function, called in that host's network: its connections start there."""
        return in_namespace(self.pid, action)


@dataclass(frozen=True)
class Sites:
    """The two sites; everything at one reaches the other by its `address`."""

    source: Site
    destination: Site

    def check(self) -> None:
        """Raises if a program that was started has ended by itself."""
        self.source._supervisor.check()


class Wan:
    """The link between the sites; `link` is what it is now."""

    def __init__(self, link: LinkProfile) -> None:
        self.link = link

    def set(self, **values: str) -> None:
        """Changes the link, as `set(rtt="100ms", loss="1%")`; what is on its way arrives."""
        changed = links.changes(values)
        self.link = replace(self.link, **changed)
        wan.set_link(self.link, topology.WAN_PORTS)

    def cut(self) -> None:
        """Loses everything from now on, both ways, without either site being told."""
        wan.cut(self.link, topology.WAN_PORTS)

    def mend(self) -> None:
        """Makes a cut link what it was."""
        wan.set_link(self.link, topology.WAN_PORTS)

    def sent_bytes(self) -> tuple[int, int]:
        """Bytes over the link until now, towards the destination, and towards the source: headers
        included, but where the link bears bursts (`wan.py`) a burst has one. What a cut link or
        loss has dropped is not in it."""
        received, sent = topology.link_counters()["wan"]
        return received, sent


@contextmanager
def standing(link: LinkProfile, logs: Path, directory: Path) -> Iterator[tuple[Sites, Wan]]:
    """Both sites with this link between them; programs started there are ended first."""
    with topology.sites(link) as hosts, Supervisor(logs) as supervisor:

        def site(name: str, host: str) -> Site:
            own = directory / name
            own.mkdir()
            address = topology.ADDRESS[f"{host}-wan"]
            return Site(name, address, own, hosts.pids[host], supervisor)

        pair = Sites(site("source", "st_src"), site("destination", "st_dst"))
        yield pair, Wan(link)
        supervisor.check()
