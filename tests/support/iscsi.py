"""`relocator iscsi` and a plain tgtd, as tests want them; and initiators that need no kernel."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import wait_for
from tests.support.sources import Daemon, free_port

NAME = "iqn.2024-01.org.example:disk"


class Portal:
    """A running `relocator iscsi`."""

    def __init__(self, directory: Path, uri: str, *options: str) -> None:
        self.port = free_port()
        self.log = directory / f"iscsi-{self.port}.log"
        command = [sys.executable, "-m", "relocator.cli.main", "iscsi", uri, "--name", NAME]
        command += ["--listen", f"127.0.0.1:{self.port}", *options]
        # Its files in a directory of their own: what is left of them can be seen. Beside the test's
        # directory, since the path of a socket is at most 107 bytes long.
        self.files = directory.parent / f"iscsi-{self.port}"
        self.files.mkdir()
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "TMPDIR": str(self.files)},
            )

    @property
    def address(self) -> str:
        return f"iscsi://127.0.0.1:{self.port}"

    @property
    def disk(self) -> str:
        return f"{self.address}/{NAME}/1"

    def await_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return "serves" in self.log.read_text()

        wait_for(ready, "the portal")

    def started(self) -> list[int]:
        """The processes it started, by what only they have in their environment or command."""
        marks = (str(self.files).encode(), f"portal=127.0.0.1:{self.port}".encode())
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                said = (directory / "environ").read_bytes() + (directory / "cmdline").read_bytes()
            except OSError:
                continue  # it has gone
            if int(directory.name) != self.process.pid and any(mark in said for mark in marks):
                found.append(int(directory.name))
        return found

    def leftovers(self) -> list[str]:
        """What must not be there once it has ended."""
        mounts = Path("/proc/mounts").read_text().splitlines()
        return [
            *(f"process {pid}" for pid in self.started()),
            *(line for line in mounts if str(self.files) in line),
        ]


@contextmanager
def portal(directory: Path, uri: str, *options: str) -> Iterator[Portal]:
    """`relocator iscsi URI OPTIONS`, serving; asked to end at the end of the block."""
    running = Portal(directory, uri, *options)
    try:
        running.await_ready()
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        try:
            running.process.wait(30)
        finally:
            running.process.kill()
            running.process.wait()
            print(running.log.read_text())  # shown if the test fails


def initiator(*argv: str, environment: dict[str, str] | None = None) -> str:
    """What a command prints; it must succeed."""
    done = asked(*argv, environment=environment)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}"
    return done.stdout


def asked(
    *argv: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command carried out, however it ends."""
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | (environment or {}),
        text=True,
        timeout=120,
        check=False,
    )


def qemu_io(disk: str, *commands: str) -> str:
    """qemu-io's commands on a LUN; a pattern that isn't found fails."""
    options = [word for command in commands for word in ("-c", command)]
    said = initiator("qemu-io", "-f", "raw", "-t", "none", disk, *options)
    assert "verification failed" not in said, said
    return said


class Tgt:
    """A LUN served by a tgtd that knows nothing of us."""

    def __init__(self, directory: Path, image: Path) -> None:
        self._image = image
        self._environment = {"TGT_IPC_SOCKET": str(directory / "tgt")}
        port = free_port()
        environment = [f"{key}={value}" for key, value in self._environment.items()]
        argv = ["env", *environment, "tgtd", "-f", "--iscsi", f"portal=127.0.0.1:{port}"]
        self._daemon = Daemon(directory, "tgtd", port, argv)
        self.uri = f"iscsi://127.0.0.1:{port}/{NAME}/1"
        self._serve()

    def _serve(self) -> None:
        wait_for(lambda: self._tgtadm(["--mode", "sys", "--op", "show"]) == 0, "tgtd")
        target = ["--tid", "1"]
        for words in (
            ["--mode", "target", "--op", "new", *target, "--targetname", NAME],
            ["--mode", "logicalunit", "--op", "new", *target, "--lun=1", "-b", str(self._image)],
            ["--mode", "target", "--op", "bind", *target, "--initiator-address=ALL"],
        ):
            assert self._tgtadm(words) == 0, words

    def _tgtadm(self, words: Sequence[str]) -> int:
        return asked("tgtadm", "--lld=iscsi", *words, environment=self._environment).returncode

    def wants(self, user: str, password: str) -> None:
        """From now on an initiator must know these."""
        account = ["--mode", "account", "--user", user]
        assert self._tgtadm([*account, "--op", "new", "--password", password]) == 0
        assert self._tgtadm([*account, "--op", "bind", "--tid", "1"]) == 0

    def kill(self) -> None:
        """kill -9."""
        self._daemon.kill()

    def start(self) -> None:
        """Start it again, on the same address."""
        self._daemon.start()
        self._serve()


@contextmanager
def tgt(directory: Path, image: Path) -> Iterator[Tgt]:
    """A tgtd that serves `image`; killed at the end of the block."""
    running = Tgt(directory, image)
    try:
        yield running
    finally:
        running.kill()
