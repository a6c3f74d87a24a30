"""What the acts of a migration leave for each other.

An act is a function of the stage, in a module that reads from top to bottom: prepare, observe,
move, relocate, prove. Nothing here decides anything.
"""

import time
from pathlib import Path

from testbed.hosts import services
from testbed.hosts.supervise import Supervisor
from testbed.migration import options, record
from testbed.migration.guest import Guest
from testbed.migration.results import Results
from testbed.network import link_events, topology
from testbed.network.topology import ADDRESS
from testbed.systems import System

NBD = (Path("/dev/nbd0"), Path("/dev/nbd1"))


class LinkRefused(RuntimeError):
    """The measured link is not the one that was asked for."""


class CheckFailed(RuntimeError):
    """Something that must hold does not."""


class Stage:
    """One run so far. What has only a type is set by the act that makes it."""

    sites: topology.Sites
    servers: Supervisor
    system: System
    guest: Guest
    sampler: record.Sampler
    source_mtime_ns: int

    def __init__(self, parameters: options.Parameters, results: Results, work: Path) -> None:
        self.parameters = parameters
        self.results = results
        self.log = results.recorder
        self.work = work
        self.logs = work / "logs"
        self.logs.mkdir()
        self.image = work / "source.img"
        self.mount = work / "guest"
        self.load = parameters.load
        self.changes = link_events.Schedule(parameters.steps, topology.WAN_PORTS, results.recorder)

    def attach(self, device: Path, host: str, server: str) -> services.KernelNbd:
        return services.attach(self.servers, device, ADDRESS[server], self.sites.pids[host])

    def go_on_until(self, run_s: float) -> None:
        """Lets the run go on; anything that ends early or fails ends it."""
        assert self.log.zero_s is not None
        while (left_s := self.log.zero_s + run_s - time.monotonic()) > 0:
            self.check_alive()
            time.sleep(min(left_s, 0.25))

    def check_alive(self) -> None:
        self.guest.check()
        self.servers.check()
        self.sampler.check()
        self.changes.check()
