"""What this machine offers: facts, each with the Debian package that would change it.

Everything that the project can use and doesn't contain is named here once: kernel features (netem,
nbd, device-mapper), commands, Python modules. The lab asks whether it can run natively or must use
a virtual machine, and `relocator doctor` prints all of it. A fact is found out without changing the
machine, and looking is all that touches the system: it goes through a `Probe`, so tests can invent
a machine.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from relocator.cli.listening import allow

# Administrators' directories are missing from an ordinary user's PATH on Debian.
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_PROBE_TIMEOUT_S = 20


@dataclass(frozen=True)
class Fact:
    """One thing about this host: whether it is there, and if not, what would provide it."""

    name: str
    ok: bool
    detail: str  # a version, or how it was found out
    remedy: str | None = None  # None when there is nothing to install


class Tool(NamedTuple):
    """A command, the Debian package it comes in, what it is for, and who needs it."""

    command: str
    package: str
    purpose: str
    needed_for: str  # words of "relocator", "native", "vm", "build", "iscsi", "libvirt", "tls"
    version: str = "--version"  # the argument that shows it


TOOLS = (
    Tool("nbdkit", "nbdkit", "serves the disks", "relocator native"),
    Tool("nbdcopy", "libnbd-bin", "plain copies, to compare with", "native"),
    Tool("fio", "fio", "load", "native"),
    Tool("mke2fs", "e2fsprogs", "makes file systems", "native", "-V"),
    Tool("ip", "iproute2", "network name spaces", "native", "-V"),
    Tool("tc", "iproute2", "the WAN's delay and rate", "native", "-V"),
    Tool("mnexec", "mininet", "runs commands at a site", "native", "-v"),
    Tool("brctl", "bridge-utils", "the sites' switches", "native"),
    Tool("nbd-client", "nbd-client", "the workload's block device", "native", "-V"),
    Tool("dmsetup", "dmsetup", "switches the workload's device", "native", "version"),
    Tool("modprobe", "kmod", "loads kernel modules", "native"),
    Tool("qemu-system-x86_64", "qemu-system-x86", "the lab's virtual machine", "vm"),
    Tool("tgtd", "tgt", "serves disks to iSCSI initiators", "iscsi"),
    Tool("nbdfuse", "libnbd-bin", "shows tgtd a disk as a file", "iscsi"),
    Tool("qemu-nbd", "qemu-utils", "asks again for a server that is away", "iscsi"),
    Tool("virsh", "libvirt-clients", "moves guests of libvirt", "libvirt"),
    Tool("psktool", "gnutls-bin", "makes pre-shared keys for TLS", "tls"),
    Tool("setpriv", "util-linux", "ends what the lab started with it", "vm build native"),
    Tool("mmdebstrap", "mmdebstrap", "builds the lab's image", "build"),
    Tool("mkfs.erofs", "erofs-utils", "packs the lab's image", "build", "--help"),
)

# Python module -> its Debian package.
_MODULES = {"nbd": "python3-libnbd", "mininet": "mininet"}
# What one verb needs and the rest does without: Python module -> (what for, what brings it).
_OPTIONAL = {
    "qemu.qmp": ("relocator migrate", "pip install qemu.qmp"),
    "prometheus_client": ("relocator metrics", "apt-get install python3-prometheus-client"),
}
# Kernel feature -> (module, what shows that it is in the kernel already, relative to /).
_KERNEL = {
    "netem": ("sch_netem", "sys/module/sch_netem"),
    "nbd": ("nbd", "sys/block/nbd0"),
    "device-mapper": ("dm_mod", "sys/module/dm_mod"),
}


#: A link that TCP's buffers should bear: what a proxy has for its copy from a source far away.
_FAR_CONNECTIONS, _FAR_S, _FAR_BITS_PER_S = 12, 0.1, 1e9

_LIBVIRT = "etc/libvirt"
#: the kernel gives these ports to no connection that asks for any
_RESERVED = "net.ipv4.ip_local_reserved_ports"


class Probe:
    """How facts are found out; the only place here that looks at the system."""

    def euid(self) -> int:
        return os.geteuid()

    def release(self) -> str:
        return os.uname().release

    def exists(self, path: str) -> bool:
        return (Path("/") / path).exists()

    def text(self, path: str) -> str:
        """A file's contents; empty where it can't be read."""
        with suppress(OSError):
            return (Path("/") / path).read_text(errors="replace")
        return ""

    def find(self, command: str) -> str | None:
        return shutil.which(command, path=_SEARCH_PATH)

    def python_module(self, name: str) -> bool:
        with suppress(ModuleNotFoundError):  # the package that it would be in
            return importlib.util.find_spec(name) is not None
        return False

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        """Exit status and combined output; 127 when the command isn't there."""
        program = self.find(command[0])
        if program is None:
            return 127, f"{command[0]}: not found"
        try:
            done = subprocess.run(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_PROBE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124, f"{command[0]}: no answer in {_PROBE_TIMEOUT_S} s"
        return done.returncode, done.stdout.decode(errors="replace")


SYSTEM = Probe()


def is_root(probe: Probe = SYSTEM) -> bool:
    return probe.euid() == 0


def root_fact(probe: Probe = SYSTEM) -> Fact:
    if is_root(probe):
        return Fact("root", True, "running as root")
    return Fact("root", False, f"running as user {probe.euid()}", "run as root, or with sudo")


def kernel_fact(feature: str, probe: Probe = SYSTEM) -> Fact:
    """Whether the running kernel has `feature` (netem, nbd or device-mapper) or can load it."""
    module, sign = _KERNEL[feature]
    release = probe.release()
    if probe.exists(sign):
        return Fact(feature, True, f"in the running kernel ({release})")
    if probe.run(["modprobe", "--dry-run", "--quiet", module])[0] == 0:
        return Fact(feature, True, f"module {module} ({release})")
    if feature == "netem" and _netem_answers(probe):
        return Fact(feature, True, f"built into the kernel ({release})")
    remedy = "a kernel that has it, such as Debian's linux-image-amd64"
    return Fact(feature, False, f"kernel {release} has no {module}", remedy)


def _netem_answers(probe: Probe) -> bool:
    """Asks the kernel itself, in a network name space of its own; needs root."""
    attempt = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    return is_root(probe) and probe.run(["unshare", "--net", "--", *attempt])[0] == 0


def tool_fact(tool: Tool, probe: Probe = SYSTEM) -> Fact:
    if probe.find(tool.command) is None:
        remedy = f"apt-get install {tool.package}"
        return Fact(tool.command, False, f"missing: {tool.purpose}", remedy)
    output = probe.run([tool.command, tool.version])[1]
    version = re.search(r"\d+(?:\.\d+)+", output)
    return Fact(tool.command, True, version[0] if version else "present")


def module_fact(module: str, probe: Probe = SYSTEM) -> Fact:
    if probe.python_module(module):
        return Fact(f"python module {module}", True, "present")
    return Fact(f"python module {module}", False, "missing", f"apt-get install {_MODULES[module]}")


def optional_fact(module: str, probe: Probe = SYSTEM) -> Fact:
    """Whether a verb that needs more than the others can be used."""
    purpose, remedy = _OPTIONAL[module]
    found = probe.python_module(module)
    detail = "present" if found else f"missing: {purpose}"
    return Fact(f"python module {module}", found, detail, remedy)


def python_plugin_fact(probe: Probe = SYSTEM) -> Fact:
    """Whether nbdkit can run Python, in which the product is written."""
    name = "nbdkit's python plugin"
    if probe.run(["nbdkit", "--dump-plugin", "python"])[0] == 0:
        return Fact(name, True, "present")
    return Fact(name, False, "missing", "apt-get install nbdkit-plugin-python")


def bbr_fact(probe: Probe = SYSTEM) -> Fact:
    """Whether `--congestion bbr` will do, and for whom."""
    name = "TCP congestion control bbr"
    listed = _sysctl("net.ipv4.tcp_available_congestion_control", probe)
    allowed = _sysctl("net.ipv4.tcp_allowed_congestion_control", probe)
    if "bbr" in allowed:
        return Fact(name, True, "for links that lose packets: --congestion bbr")
    if "bbr" in listed or probe.run(["modprobe", "--dry-run", "--quiet", "tcp_bbr"])[0] == 0:
        return Fact(name, True, f"root's --congestion bbr; the units': {allow('bbr', allowed)}")
    remedy = "a kernel that has it, such as Debian's linux-image-amd64"
    return Fact(name, False, f"kernel {probe.release()} has no tcp_bbr", remedy)


def _sysctl(key: str, probe: Probe) -> list[str]:
    """The words of its value; none where there is no such key."""
    status, text = probe.run(["sysctl", "-n", key])
    return text.split() if status == 0 else []


def buffers_fact(probe: Probe = SYSTEM) -> Fact:
    """Whether TCP's buffers let a proxy's connections fill a long fast link.

    Half of a receive buffer is the window that the other side sees (tcp_adv_win_scale).
    """
    name = "TCP buffers"
    keys = ("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem")
    most = [_sysctl(key, probe)[-1:] for key in keys]
    if not all(found and found[0].isdecimal() for found in most):
        return Fact(name, True, "the kernel doesn't tell")
    in_flight = min(int(found[0]) for found in most) // 2 * _FAR_CONNECTIONS
    carries = in_flight * 8 / _FAR_S
    at = f"{carries / 1e9:.1f} Gbit/s at {_FAR_S * 1e3:.0f} ms"
    detail = f"{in_flight / 1e6:.0f} MB in flight, {at}"
    remedy = "sysctl -w " + " ".join(f"{key}='4096 131072 16777216'" for key in keys)
    return Fact(name, carries >= _FAR_BITS_PER_S, detail, remedy)


def arrival_ports_fact(probe: Probe = SYSTEM) -> Fact:
    """Whether the ports at which libvirt's guests arrive are kept from connections of this host.

    libvirt chooses one long before QEMU listens there. A connection that took it meanwhile (of a
    proxy, or QEMU's own to its disk) leaves QEMU its IPv6 half, and the migration is refused.
    """
    name = "ports for arriving guests"
    settings = probe.text(f"{_LIBVIRT}/qemu.conf")
    first, last = (
        int(found[-1])
        if (found := re.findall(rf"^\s*{key}\s*=\s*(\d+)", settings, re.M))
        else usual
        for key, usual in (("migration_port_min", 49152), ("migration_port_max", 49215))
    )
    lowest, highest = (*map(int, _sysctl("net.ipv4.ip_local_port_range", probe)), 0, 0)[:2]
    if not highest:
        return Fact(name, True, "the kernel doesn't tell")
    reserved = [word for text in _sysctl(_RESERVED, probe) for word in text.split(",")]
    taken = set(range(max(first, lowest), min(last, highest) + 1))
    for word in reserved:
        start, _, end = word.partition("-")
        taken -= set(range(int(start), int(end or start) + 1))
    ports = f"{first} to {last}"
    if not taken:
        return Fact(name, True, f"{ports}: no connection of this host takes them")
    remedy = f"sysctl -w {_RESERVED}={','.join([*reserved, f'{first}-{last}'])}"
    detail = f"{ports}: a connection may take the one that libvirt chose; then a migration fails"
    return Fact(name, False, detail, remedy)


def survey(probe: Probe = SYSTEM) -> list[Fact]:
    """Every fact, for `relocator doctor`."""
    facts = [root_fact(probe), *(kernel_fact(feature, probe) for feature in _KERNEL)]
    facts += [tool_fact(tool, probe) for tool in TOOLS]
    facts += [module_fact(module, probe) for module in _MODULES]
    facts += [optional_fact(module, probe) for module in _OPTIONAL]
    facts += [python_plugin_fact(probe), bbr_fact(probe), buffers_fact(probe)]
    return [*facts, arrival_ports_fact(probe)] if probe.exists(_LIBVIRT) else facts


def native_obstacles(probe: Probe = SYSTEM) -> list[str]:
    """Why the test bed can't run on this kernel and machine directly; empty if it can."""
    absent = [feature for feature in _KERNEL if not kernel_fact(feature, probe).ok]
    obstacles = [f"kernel {probe.release()} has no {', '.join(absent)}"] if absent else []
    if not is_root(probe):
        obstacles.append("not root")
    modules = {module: module_fact(module, probe) for module in sorted(_MODULES)}
    return [
        *obstacles,
        *_missing("native", probe),
        *(f"Python can't import {m} ({fact.remedy})" for m, fact in modules.items() if not fact.ok),
    ]


def vm_obstacles(probe: Probe = SYSTEM) -> list[str]:
    """Why the lab's virtual machine can't be started here; empty if it can."""
    return _missing("vm", probe)


def build_obstacles(probe: Probe = SYSTEM) -> list[str]:
    """Why the lab's image can't be built here; empty if it can."""
    obstacles = _missing("build", probe)
    if not is_root(probe) and probe.find("newuidmap") is None:
        obstacles.append("not root, and newuidmap is missing (apt-get install uidmap)")
    return obstacles


def _missing(purpose: str, probe: Probe) -> list[str]:
    needed = (tool for tool in TOOLS if purpose in tool.needed_for.split())
    missing = [tool for tool in needed if probe.find(tool.command) is None]
    return [f"{tool.command} is missing (apt-get install {tool.package})" for tool in missing]
