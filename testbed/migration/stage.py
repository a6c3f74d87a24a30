"""What the acts of a migration leave for each other.

An act is a function of the stage, in a module that reads from top to bottom: prepare, observe,
move, relocate, prove. Nothing here decides anything.
"""

import time
from pathlib import Path
from typing import Any

from testbed.hosts import services
from testbed.hosts.supervise import Supervisor
from testbed.migration import options, record, requests
from testbed.migration.disk import Contents
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
    contents: Contents
    servers: Supervisor
    system: System
    nbd: services.KernelNbd  # what the guest's disk is on now
    arriving: services.KernelNbd  # what it will be on
    device: services.GuestDevice
    sampler: record.Sampler
    workloads: Supervisor
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
        self.trace = requests.Trace()
        self.changes = link_events.Schedule(parameters.steps, topology.WAN_PORTS, results.recorder)

    def attach(self, device: Path, host: str, server: str) -> services.KernelNbd:
        return services.attach(self.servers, device, ADDRESS[server], self.sites.pids[host])

    def mounted(self, device: Path, mount_options: str) -> Any:
        file_system = self.parameters.file_system
        return services.mounted(device, self.mount, mount_options, file_system)

    def go_on_until(self, run_s: float) -> None:
        """Lets the run go on; anything that ends early or fails ends it."""
        assert self.log.zero_s is not None
        while (left_s := self.log.zero_s + run_s - time.monotonic()) > 0:
            self.check_alive()
            time.sleep(min(left_s, 0.25))

    def check_alive(self) -> None:
        self.workloads.check()
        self.servers.check()
        self.sampler.check()
        self.changes.check()

    def all_match(self, where: str) -> str:
        """What is said of files without a mismatch."""
        return f"{len(self.contents.manifest)} files match their checksums {where}"
