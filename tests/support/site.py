"""A machine of its own without a machine: namespaces, a copy-on-write root, systemd as its init.

It sees this system's installed packages and the project, read-only and in /opt/relocator. What it
writes is gone with it; its processes, network, host name and units are its own. Its files are
reached from outside through `path`. Two of them are joined by a cable.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).parents[2]
_INIT = Path(__file__).with_name("site.sh")
_READY_S = 90.0
_SPACES = ("--cgroup", "--mount", "--pid", "--net", "--uts", "--ipc")


class Site:
    """A running machine."""

    PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.neighbours: list[Site] = []
        self._log = directory / f"{name}.log"
        mount = directory / name
        mount.mkdir()
        self._group = _new_group(f"relocator-{os.getpid()}-{name}")
        inside = [str(_INIT), str(mount), str(PROJECT), name]
        enter = 'echo $$ >"$0/cgroup.procs"; exec "$@"'
        unshare = ["unshare", *_SPACES, "--fork", "--kill-child", "sh", *inside]
        with self._log.open("wb") as log:
            self._unshare = subprocess.Popen(
                ["sh", "-c", enter, str(self._group), *unshare],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = 0

    def await_ready(self) -> None:
        """Wait until systemd has started what every service stands upon."""
        give_up_s = time.monotonic() + _READY_S
        while time.monotonic() < give_up_s:
            assert self._unshare.poll() is None, self._log.read_text()
            if self._is_up():
                return
            time.sleep(0.1)
        raise AssertionError(f"site {self.name} doesn't come up: {self._log.read_text()[-2000:]}")

    def _is_up(self) -> bool:
        pid = self._unshare.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return False
        self.pid = int(children[0])
        with contextlib.suppress(OSError):
            if Path(f"/proc/{self.pid}/comm").read_text() == "systemd\n":
                return self.ask("systemctl", "is-active", "basic.target").returncode == 0
        return False

    def path(self, inside: str) -> Path:
        """A file of this machine, as it is reached from outside."""
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")

    def ask(self, *argv: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """A command carried out here, however it ends; errors are in what it printed."""
        return subprocess.run(
            ["nsenter", "--all", "--target", str(self.pid), "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": self.PATH, "LANG": "C.UTF-8", "HOME": "/root"},
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run(self, *argv: str, timeout_s: float = 120.0) -> str:
        """What a command prints here; it must succeed."""
        done = self.ask(*argv, timeout_s=timeout_s)
        if done.returncode:
            journals = [machine.journal() for machine in (self, *self.neighbours)]
            failed = f"{self.name}: {' '.join(argv)}: {done.stdout}"
            raise AssertionError("\n".join([failed, *journals]))
        return done.stdout

    def stay(self, command: str) -> None:
        """Start a command that stays until the machine ends, and says when it is ready."""
        how = ["--property=Type=notify", "--setenv", f"PATH={self.PATH}"]
        self.run("systemd-run", *how, "sh", "-c", f"exec {command}")

    def journal(self) -> str:
        """The last of what services said, and a hypervisor's processes."""
        said = self.ask("journalctl", "--no-pager", "--lines=60", "--output=short-monotonic").stdout
        logs = sorted(self.path("/var/log/libvirt/qemu").glob("*.log"))
        return "\n".join([said, *(f"{log.name}: {log.read_text()[-2000:]}" for log in logs)])

    def stop(self) -> None:
        """End everything that runs here."""
        (self._group / "cgroup.kill").write_text("1")
        self._unshare.kill()
        self._unshare.wait()
        _remove_group(self._group)


@contextmanager
def site(directory: Path, name: str) -> Iterator[Site]:
    """A machine, up; ended at the end of the block."""
    machine = Site(directory, name)
    try:
        machine.await_ready()
        yield machine
    finally:
        machine.stop()


def join(one: Site, address: str, other: Site, its_address: str) -> None:
    """A cable between two machines, which know each other's names; addresses as `10.1.0.1/24`."""
    one.neighbours.append(other)
    other.neighbours.append(one)
    ends = [("wan", one, address), ("wan", other, its_address)]
    peer = ["peer", "name", "wan", "netns", str(other.pid)]
    made = ["ip", "link", "add", "wan", "netns", str(one.pid), "type", "veth", *peer]
    subprocess.run(made, check=True, timeout=30)
    names = [f"{ours.partition('/')[0]} {machine.name}" for _, machine, ours in ends]
    for device, machine, ours in ends:
        machine.path("/etc/hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        machine.run("ip", "address", "add", ours, "dev", device)
        machine.run("ip", "link", "set", device, "up")


def share_key(*machines: Site) -> None:
    """One key for all of them, each in /etc/relocator."""
    first, *others = machines
    first.run("mkdir", "-p", "/etc/relocator")
    if not first.path("/etc/relocator/key").exists():
        first.run("relocator", "keygen", "/etc/relocator/key")
    for other in others:
        other.run("mkdir", "-p", "/etc/relocator")
        copy = other.path("/etc/relocator/key")
        copy.touch(mode=0o600)
        copy.write_bytes(first.path("/etc/relocator/key").read_bytes())


def _new_group(name: str) -> Path:
    """A control group of its own, so that all that is in it can be killed at once."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    found = next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)
    if found is None:
        found = Path("/run/relocator-test-cgroup")
        found.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "cgroup2", "cgroup", str(found)], check=True, timeout=30)
    group = found / name
    group.mkdir()
    return group


def _remove_group(group: Path) -> None:
    give_up_s = time.monotonic() + 30.0
    for directory in sorted((Path(one[0]) for one in os.walk(group)), reverse=True):
        while time.monotonic() < give_up_s:
            try:
                directory.rmdir()
            except FileNotFoundError:
                break
            except OSError:  # what was killed is still on its way out
                time.sleep(0.05)
            else:
                break
