"""Two sites on this machine, a guest that counts, and `relocator migrate` between them."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from relocator.errors import RelocatorError
from tests.support.bootguest import PLACES, Qemu, make_disk, numbers_in, on_disk
from tests.support.model import source_bytes
from tests.support.servers import PLUGIN, Server, plugin, wait_for

SIZE_BYTES = 4 << 20


class Sites:
    """The guest at site a with `disks` disks, the proxies and a waiting QEMU at site b."""

    source_flags: Sequence[str] = ()
    file = PLUGIN  # the proxies'

    def __init__(self, directory: Path, disks: int = 2, *keys: str) -> None:
        self.a, self.b = directory / "a", directory / "b"
        self.disks = range(disks)
        self.keys = keys
        self.ends = ExitStack()
        self.targets: list[Server] = []
        self.proxies: list[Server] = []
        self.guests: list[Qemu] = []
        self.uri = f"unix:{self.b / 'memory'}"
        for site in (self.a, self.b):
            site.mkdir()
        for at in self.disks:
            make_disk(self.image(self.a, at), SIZE_BYTES, source_bytes(1 << 20))

    def __enter__(self) -> "Sites":
        with self.ends:
            for at in self.disks:
                self.targets.append(self.target(at))
                self.proxies.append(self.proxy(at))
            self.source = self.qemu(self.a, "source", self.targets, None, self.source_flags)
            self.source.goes_on()
            self.destination = self.qemu(self.b, "destination", self.proxies, "defer")
            self.ends = self.ends.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for guest in self.guests:
            guest.kill()
        for server in self.proxies:  # a source's server waits for them
            server.stop()
        self.ends.close()

    @staticmethod
    def image(site: Path, at: int) -> Path:
        """The image of a disk at a site."""
        return site / f"disk{at}.img" if site.name == "a" else site / f"store{at}" / "disk.img"

    def target(self, at: int) -> Server:
        """A disk's server at the source; again: after it was killed."""
        keys = (f"disk={self.image(self.a, at)}", f"store={self.a / f'maps{at}'}")
        return self.ends.enter_context(plugin(self.a, f"target{at}", *keys))  # type: ignore[no-any-return]

    def proxy(self, at: int) -> Server:
        """A disk's server at the destination; again: after it was killed."""
        keys = (f"store={self.b / f'store{at}'}", f"source={self.way(at)}", "mode=standby")
        more = {"within": self.within(self.b), "file": self.file}
        return self.ends.enter_context(plugin(self.b, f"proxy{at}", *keys, *self.keys, **more))  # type: ignore[no-any-return]

    def way(self, at: int) -> str:
        """How a proxy reaches its source."""
        return self.targets[at].uri

    def within(self, site: Path) -> list[str]:
        """What runs a command at a site."""
        del site
        return []

    def qemu(
        self,
        site: Path,
        name: str,
        servers: list[Server],
        incoming: str | None = None,
        flags: Sequence[str] = (),
    ) -> Qemu:
        """A QEMU with the disks of `servers`."""
        disks = [server.socket for server in servers]
        made = Qemu(site, name, disks, incoming, list(flags), self.within(site))
        self.ends.callback(made.stop)
        self.guests.append(made)
        return made

    def new_destination(self) -> None:
        """QEMU ends with a migration that fails: start another."""
        self.destination.kill()
        self.destination = self.qemu(self.b, "destination", self.proxies, "defer")

    def arguments(self, *more: str) -> list[str]:
        """What names this move."""
        words = ["--from", str(self.source.qmp), "--to", str(self.destination.qmp)]
        words += ["--uri", self.uri]
        for target, proxy in zip(self.targets, self.proxies, strict=True):
            words += ["--disk", f"{target.control_path},{proxy.control_path}"]
        return [*words, *more]

    def migrate(self, *more: str) -> subprocess.CompletedProcess[str]:
        """`relocator migrate` with what names this move."""
        return self.run(*self.arguments(*more))

    @staticmethod
    def run(
        *arguments: str, timeout_s: float = 90, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`relocator migrate`."""
        return subprocess.run(
            command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
        )

    def moved(self, *more: str) -> dict[str, Any]:
        """`relocator migrate --json`, to its end; its report."""
        done = self.migrate("--json", *more)
        assert done.returncode == 0, done.stdout + done.stderr
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["report"]
        return report

    def states(self) -> list[tuple[str, str]]:
        """Each disk's state at the source and at the proxy."""
        return [
            (target.control.call("status")["state"], proxy.control.call("status")["state"])
            for target, proxy in zip(self.targets, self.proxies, strict=True)
        ]

    def prove(self, *ran: Qemu, site: Path) -> None:
        """Every number that the guest acknowledged, wherever it `ran`, is on the disks of `site`.

        The guest counted without a gap and saw no error; what it has not written is as it was.
        """
        numbers = numbers_in("".join(qemu.said for qemu in ran))
        assert numbers == sorted(numbers)
        assert len(set(numbers)) == len(numbers)
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), "the guest lost numbers"
        for qemu in ran:
            assert "F" not in qemu.said, f"a request failed in {qemu.name}"
            assert "D" not in qemu.said, f"{qemu.name} read something else than was written"
        for at in self.disks:
            found = on_disk(self.image(site, at))
            for number in numbers[-PLACES:]:
                newer = number + PLACES == numbers[-1] + 1  # may have been written, not yet told
                assert found[number % PLACES] in (number, number + PLACES if newer else number)
            kept = self.image(site, at).read_bytes()[(1 + PLACES) * 4096 :][: 1 << 20]
            assert kept == source_bytes(1 << 20)


def command(*arguments: str) -> list[str]:
    """`relocator migrate ARGUMENTS`."""
    return [sys.executable, "-m", "relocator.cli.main", "migrate", *arguments]


def stopped(
    sites: Sites, place: str, environment: Mapping[str, str] | None = None
) -> AbstractContextManager[subprocess.Popen[str]]:
    """`relocator migrate`, begun and standing at `place`; it goes on when told by a line."""
    return standing(place, *sites.arguments(), environment=environment)


@contextmanager
def standing(
    place: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The same, with these arguments."""
    with subprocess.Popen(
        command("--stop-at", place, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            while f"stopped at {place}" not in said:
                line = process.stderr.readline()
                assert line, f"it ended before it came to {place}: {said}"
                said += line
            yield process
        finally:
            process.kill()


def owner(sites: Sites) -> str:
    """The only site at which the disks can be written.

    A disk that a source sealed and whose proxy holds its writes would be at neither.
    """
    owners = set()
    for target, proxy in zip(sites.targets, sites.proxies, strict=True):
        here, there = (server.control.call("status") for server in (target, proxy))
        at_source = here["state"] == "complete"
        at_destination = there["state"] in ("active", "complete")
        assert at_source != at_destination, (here["state"], there["state"], there["error"])
        owners.add("source" if at_source else "destination")
    assert len(owners) == 1, "the disks are at different sites"
    return owners.pop()


def settled_owner(sites: Sites) -> str:
    """The same, once the proxies have told the sources what they owe them."""

    def told() -> bool:
        try:
            owner(sites)
        except (AssertionError, RelocatorError):
            return False
        return True

    try:
        wait_for(told, "each disk to be writable at one site")
    except AssertionError:
        owner(sites)  # says which is not
        raise
    return owner(sites)


__all__ = ["SIZE_BYTES", "Sites", "command", "settled_owner", "standing", "stopped", "wait_for"]
