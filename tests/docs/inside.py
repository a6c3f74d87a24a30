"""What needs the kernel's nbd and LIO, done in the lab: `python3 -m tests.docs.inside`.

Both sites are this machine, which has the addresses of both; the page's commands for one follow
those for the other.
"""

import os
import socket
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.docs.page import Page
from tests.support.model import source_bytes

PAGE = Path(os.environ["LAB_FILES"], "hypervisors.md")
SIZE_BYTES = 16 << 20
LUN = "iscsi://10.1.0.2:3260/iqn.2024-01.org.example:vm1/1"


class Here:
    """This machine, as a site."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def path(self, inside: str) -> Path:
        return Path(inside)

    def run(self, *argv: str, timeout_s: float = 120.0) -> str:
        print(*argv, flush=True)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def stay(self, command: str) -> None:
        print(command, flush=True)
        with (
            tempfile.TemporaryDirectory() as directory,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
        ):
            path = f"{directory}/notify"
            told.bind(path)
            told.settimeout(60.0)
            environment = {**os.environ, "NOTIFY_SOCKET": path}
            process = subprocess.Popen(["sh", "-c", f"exec {command}"], env=environment)
            self._stack.callback(process.wait)
            self._stack.callback(process.terminate)
            assert told.recv(100) == b"READY=1"


def main() -> None:
    with ExitStack() as stack:
        here = Here(stack)
        sites = {"source": here, "destination": here}
        page = Page(PAGE, lab=True)
        prepare(here)
        here.run("relocator", "keygen", "/srv/key")
        served = "--store /srv/{0} --listen 10.1.0.{1}:10809 --control /run/relocator/{2}.sock"
        served += " --key /srv/key"
        here.stay("relocator target /srv/vm1.img " + served.format("maps", 1, "source"))
        standby = "--mode standby --activate-on-write yes --listen 10.1.0.2:10809"
        control = "--key /srv/key --control /run/relocator/vm1.sock"
        here.stay(f"relocator proxy /srv/copy nbd://10.1.0.1 {standby} {control}")
        # The blocks of the first site, in the page's order, then those of the second.
        page.run("/dev/nbdN", sites)
        assert Path("/mnt/file").read_bytes() == source_bytes(SIZE_BYTES // 4)
        assert Path("/mnt/written").read_text() == "at the source"
        Path("/mnt/later").write_text("at the destination")
        here.run("umount", "/mnt")
        here.run("nbd-client", "-d", "/dev/nbd0")
        here.run("e2fsck", "-fn", "/srv/copy/disk.img")
        page.run("By the kernel", sites)
        copy = Path("/srv/read-back.img")
        here.run("qemu-img", "convert", "-f", "raw", "-O", "raw", LUN, str(copy))
        assert copy.read_bytes() == Path("/srv/copy/disk.img").read_bytes()
        steps = ("write -P 0x61 1M 64k", "flush", "read -P 0x61 1M 64k")
        commands = [word for step in steps for word in ("-c", step)]
        assert "failed" not in here.run("qemu-io", "-f", "raw", "-t", "none", LUN, *commands)
        assert Path("/srv/copy/disk.img").read_bytes()[1 << 20 :][:65536] == b"\x61" * 65536
        assert page.not_run == []
    assert not Path("/sys/kernel/config/target/iscsi/iqn.2024-01.org.example:vm1").exists()
    assert not Path("/sys/block/nbd0/pid").exists()


def prepare(here: Here) -> None:
    """The command, the addresses, and a disk with a file system."""
    command = Path("/usr/local/bin/relocator")
    command.write_text('#!/bin/sh\nexec python3 -m relocator.cli.main "$@"\n')
    command.chmod(0o755)
    for directory in ("/srv", "/run/relocator", "/srv/root"):
        Path(directory).mkdir(parents=True, exist_ok=True)
    for address in ("10.1.0.1/32", "10.1.0.2/32"):
        here.run("ip", "address", "add", address, "dev", "lo")
    Path("/srv/root/file").write_bytes(source_bytes(SIZE_BYTES // 4))
    Path("/srv/root/written").write_text("at the source")
    with Path("/srv/vm1.img").open("wb") as disk:
        disk.truncate(SIZE_BYTES)
    here.run("mke2fs", "-q", "-F", "-t", "ext4", "-d", "/srv/root", "/srv/vm1.img")


if __name__ == "__main__":
    main()
