"""One node of DRBD, held by a process: `python -m testbed.hosts.drbd NAME MINOR IMAGE META`.

The device /dev/drbdMINOR is over the image, by a loop device, with new metadata in the file META,
as long as the process runs; when it is ended, nothing of it stays but the image. Who has started
it connects it and sets its role.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.hosts.supervise import Process, ProcessError, Supervisor, run, wait_until

META_BYTES = 4 << 20  # the bitmap of a disk of up to 100 GiB
ROLE_LIMIT_S = 600.0
DOWN_LIMIT_S = 30.0
#: what drbdsetup says while the last change of its state is not over ("retry after")
_IN_TRANSIENT_STATE = "(-18)"
#: for a long link: as much under way as the buffers hold, zeros not sent, no rate but the link's
#: (the first is what it begins with, before it has seen one; unset it would be 250 KiB/s)
_DISK = (
    *("--resync-rate=10M", "--c-max-rate=4G", "--c-min-rate=0"),
    *("--c-plan-ahead=20", "--c-fill-target=8M", "--rs-discard-granularity=65536"),
)
_NET = (
    *("--protocol=A", "--sndbuf-size=10M", "--rcvbuf-size=10M", "--max-buffers=20000"),
    "--connect-int=1",
)


@dataclass(frozen=True)
class Node:
    """A resource `name` with one device."""

    name: str
    minor: int

    @property
    def device(self) -> Path:
        return Path(f"/dev/drbd{self.minor}")

    def start(self, supervisor: Supervisor, image: Path, meta: Path) -> Process:
        """The process that holds it; returns once the device is there."""
        arguments = [self.name, str(self.minor), str(image), str(meta)]
        process = supervisor.start(self.name, ["python3", "-m", "testbed.hosts.drbd", *arguments])
        process.wait_until(lambda: self.disks() != "", f"{self.device}")
        return process

    def connect(self, here: str, there: str) -> None:
        """Let it listen at the one address, of the first network namespace, and look for the
        other node at the other."""
        run(["drbdsetup", "connect", self.name, here, there, *_NET])

    def hold_sync(self) -> None:
        """Once it is connected, it waits to be told when to synchronise."""
        run(["drbdsetup", "pause-sync", str(self.minor)])

    def begin_sync(self) -> None:
        """Synchronise from now on."""
        run(["drbdsetup", "resume-sync", str(self.minor)])

    def disconnect(self, here: str, there: str) -> None:
        """End the connection between these addresses: from now on nothing is replicated."""
        run(["drbdsetup", "disconnect", here, there])

    def set_role(self, role: str, *flags: str) -> None:
        """`primary` or `secondary`."""
        run(["drbdsetup", role, str(self.minor), *flags], timeout_s=ROLE_LIMIT_S)

    def end(self) -> None:
        """Take it down, once its last change of state, such as the end of its connection, is over.

        Raises:
            ProcessError: it can't be, or is not within 30 s.
        """

        def down() -> bool:
            try:
                run(["drbdsetup", "down", self.name])
            except ProcessError as error:
                if _IN_TRANSIENT_STATE not in str(error):
                    raise
                return False
            return True

        wait_until(down, f"{self.name} to leave its transient state", DOWN_LIMIT_S, every_s=0.1)

    def disks(self) -> str:
        """The state of its disk and of the other node's, such as `UpToDate/Inconsistent`; empty
        before there is one."""
        found = self._state("ds")
        return "" if found.startswith("Diskless") else found

    def roles(self) -> str:
        """Its role and, as far as it knows, the other node's, such as `Secondary/Primary`."""
        return self._state("ro")

    def _state(self, which: str) -> str:
        for line in Path("/proc/drbd").read_text().splitlines():
            if line.lstrip().startswith(f"{self.minor}: cs:"):
                found = [word[3:] for word in line.split() if word.startswith(f"{which}:")]
                return found[0] if found else ""
        return ""


@contextlib.contextmanager
def held(node: Node, image: Path, meta: Path) -> Iterator[None]:
    """The device, within the block."""
    with meta.open("wb") as file:
        file.truncate(META_BYTES)
    with contextlib.ExitStack() as ends:
        loops = []
        for path in (image, meta):
            loops.append(run(["losetup", "--find", "--show", str(path)]).strip())
            ends.callback(run, ["losetup", "--detach", loops[-1]])
        minor = str(node.minor)
        run(["drbdmeta", "--force", minor, "v08", loops[1], "flex-external", "create-md"])
        run(["drbdsetup", "new-resource", node.name])
        ends.callback(node.end)
        run(["drbdsetup", "new-minor", node.name, minor, "0"])
        run(["drbdsetup", "attach", minor, *loops, "flexible", *_DISK])
        yield


def main(arguments: Sequence[str]) -> int:
    """Holds a node until SIGTERM."""
    name, minor, image, meta = arguments
    wanted = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        with held(Node(name, int(minor)), Path(image), Path(meta)):
            signal.sigwait(wanted)
    except ProcessError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
