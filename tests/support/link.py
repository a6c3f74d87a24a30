"""Two network namespaces with a link between them that can be cut: no emulation, only the cut."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCE_ADDRESS, PROXY_ADDRESS = "10.77.0.1", "10.77.0.2"


def ip(*words: str) -> None:
    """`ip WORDS`."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def clocks(port: int | str, within: Sequence[str] = ()) -> list[str]:
    """What each end here of a connection to a port waits for, as the kernel's timers have it.

    `keepalive`: only for a sign of life; `on`: for what it sent to be acknowledged.
    """
    of_it = f"( sport = :{port} or dport = :{port} )"
    argv = [*within, "ss", "-H", "-tno", "state", "established", of_it]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout
    return [line.partition("timer:(")[2].partition(",")[0] for line in told.splitlines()]


class Link:
    """The link; the source is at one end, the proxy at the other."""

    def __init__(self) -> None:
        self.source, self.proxy = (f"{name}-{os.getpid()}" for name in ("source", "proxy"))

    def within(self, site: str) -> list[str]:
        """What runs a command in a site."""
        return ["nsenter", f"--net=/run/netns/{site}", "--"]

    def cut(self) -> None:
        """From now on nothing arrives, and nobody is told."""
        ip("-n", self.source, "link", "set", "wan", "down")

    def mend(self) -> None:
        """As before."""
        ip("-n", self.source, "link", "set", "wan", "up")

    def listens(self, port: int) -> bool:
        """Whether something listens on a port at the source."""
        table = subprocess.run(
            [*self.within(self.source), "cat", "/proc/net/tcp"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return any(
            line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
            for line in table.splitlines()[1:]
        )


@contextmanager
def sites() -> Iterator[Link]:
    """The two namespaces; skips where they can't be made."""
    if os.geteuid() != 0 or not Path("/proc/self/ns/net").exists():
        pytest.skip("network namespaces need root")
    link = Link()
    try:
        ip("netns", "add", link.source)
        ip("netns", "add", link.proxy)
        ends = ["type", "veth", "peer", "name", "wan", "netns", link.proxy]
        ip("link", "add", "wan", "netns", link.source, *ends)
        for site, address in ((link.source, SOURCE_ADDRESS), (link.proxy, PROXY_ADDRESS)):
            ip("-n", site, "addr", "add", f"{address}/24", "dev", "wan")
            ip("-n", site, "link", "set", "wan", "up")
        yield link
    finally:
        for site in (link.source, link.proxy):
            subprocess.run(["ip", "netns", "delete", site], capture_output=True, check=False)
