"""A move between two QEMUs that are monitors only, of a disk that is real, or two."""

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.migrate.sites import command
from tests.support import servers
from tests.support.command import impatient
from tests.support.fake_guest import FakeAgent, FakeMonitor
from tests.support.relay import relay
from tests.support.servers import wait_for

SIZE_BYTES = 1 << 20


class Way:
    """A disk's both ends, and the monitors between which its guest is to move."""

    proxy_keys: tuple[str, ...] = ("mode=standby",)

    def __init__(self, directory: Path, ends: ExitStack, **target: Any) -> None:
        self.directory = directory
        self.ends = ends
        self.target = ends.enter_context(servers.target(directory, SIZE_BYTES, **target))
        self.link = ends.enter_context(relay(directory / "link.sock", self.target.socket))
        self.start_proxy()
        self.source = FakeMonitor(directory / "source.qmp", "running")
        self.destination = FakeMonitor(directory / "destination.qmp", "inmigrate")
        for monitor in (self.source, self.destination):
            ends.callback(monitor.close)
        self.freeze: list[str] = []

    def start_proxy(self) -> None:
        """In standby, or as the one before it has left its store."""
        proxy = servers.proxy(self.directory, self.link.uri, *self.proxy_keys)
        self.proxy = self.ends.enter_context(proxy)

    def frozen_by(self, *, frozen: bool) -> FakeAgent:
        """The guest's agent at the source; and one at the destination."""
        here, there = self.directory / "here.agent", self.directory / "there.agent"
        agent = FakeAgent(here, frozen=frozen)
        self.ends.callback(agent.close)
        self.ends.callback(FakeAgent(there).close)
        self.freeze = ["--freeze", f"{here},{there}"]
        return agent

    def leaves(self) -> None:
        """When the source is told to go on, the guest is sent, and has not arrived yet."""

        def leave() -> None:
            self.source.status, self.source.migration = "finish-migrate", "device"

        self.source.before["migrate-continue"] = leave

    def argv(self, *more: str) -> list[str]:
        disk = f"{self.target.control_path},{self.proxy.control_path}"
        between = ["--from", str(self.source.path), "--to", str(self.destination.path)]
        return command(*between, "--uri", "tcp:1.2.3.4:5", "--disk", disk, *self.freeze, *more)

    def run(self, *more: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """`relocator migrate`, to its end."""
        return subprocess.run(
            self.argv(*more),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=impatient(self.directory),
        )

    def begin(
        self, *more: str, before: Sequence[str] = (), **streams: Any
    ) -> subprocess.Popen[str]:
        """The same; returns once memory is sent."""
        process = subprocess.Popen(
            [*before, *self.argv(*more)],
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **streams},
        )

        def end() -> None:
            with process:
                process.kill()

        self.ends.callback(end)
        return process

    def sending(self, *more: str, **streams: Any) -> subprocess.Popen[str]:
        """The same, once memory is sent, and the guard is there."""
        process = self.begin(*more, **streams)
        wait_for(lambda: self.source.migration == "active", "memory to be sent")
        return process

    def arrived(self) -> None:
        """The guest has arrived, and the source's QEMU knows it."""
        self.source.status, self.source.migration = "postmigrate", "completed"
        self.destination.status = "running"

    @property
    def back(self) -> bool:
        """The guest runs at the source, with its disk."""
        runs = self.source.status == "running" and self.source.migration == "cancelled"
        return runs and self.disk == ("complete", "standby")

    @property
    def disk(self) -> tuple[str, str]:
        """Its state at the target and at the proxy."""
        return self.target.status()["state"], self.proxy.status()["state"]


def guard_of(process: subprocess.Popen[str]) -> int:
    """The process that watches over a mover."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        if b"--when-killed" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError(f"no guard among {children}")


def caught(pid: int, number: int) -> bool:
    """Whether the process has a handler for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


class TwoDisks(Way):
    """The guest has a second disk; at the destination none is complete before the test's end."""

    proxy_keys = ("mode=standby", "background=off", "seal-brings=0")

    def __init__(self, directory: Path, ends: ExitStack) -> None:
        super().__init__(directory, ends)
        other = directory / "other"
        other.mkdir()
        self.target2 = ends.enter_context(servers.target(other, SIZE_BYTES))
        link = ends.enter_context(relay(other / "link.sock", self.target2.socket))
        self.proxy2 = ends.enter_context(servers.proxy(other, link.uri, *self.proxy_keys))

    def argv(self, *more: str) -> list[str]:
        disk = f"{self.target2.control_path},{self.proxy2.control_path}"
        return super().argv("--disk", disk, *more)

    @property
    def disk2(self) -> tuple[str, str]:
        """The second one's state at the target and at the proxy."""
        return self.target2.status()["state"], self.proxy2.status()["state"]
