"""A real QEMU without a machine in it: it is up at once, costs nothing, and answers by QMP."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relocator.moving.address import parse
from relocator.moving.monitor import Monitor, NoAnswerError
from relocator.moving.reach import reaching
from tests.support.servers import wait_for


@dataclass
class Machine:
    """`qmp` is for who is tested, for one client at a time; the test has a second one."""

    qmp: Path
    monitor: Monitor

    @property
    def status(self) -> str:
        """What it says that it does: `running`, `paused`, `inmigrate`."""
        return str(self.ask("query-status")["status"])

    def ask(self, command: str, **arguments: Any) -> Any:
        """The answer to a QMP command."""
        return self.monitor.call(command, **arguments)


@contextmanager
def machine(directory: Path, name: str, *flags: str) -> Iterator[Machine]:
    """A QEMU that is running, as far as it knows; `-incoming defer`: that waits for a guest."""
    qmp, own = directory / f"{name}.qmp", directory / f"{name}.own"
    argv = ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-no-user-config"]
    argv += ["-display", "none", *flags]
    for path in (qmp, own):
        argv += ["-qmp", f"unix:{path},server=on,wait=off"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: own.exists() or process.poll() is not None, "QEMU's QMP socket")
        with reaching() as reach:
            monitor = Monitor("the test's QEMU", parse("--from", str(own)), reach)
            try:
                with suppress(NoAnswerError):  # who comes as it begins may never be greeted
                    monitor.connect()
                yield Machine(qmp, monitor)
            finally:
                monitor.close()
    finally:
        process.kill()
        process.wait()
