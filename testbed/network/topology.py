r"""Two sites and a WAN, in Mininet.

    source site                                  destination site

    vm_src --disk--+                        +--disk-- vm_dst      VM hosts
       \----mem----+                        +----mem----/
                   [src] ===== WAN ===== [dst]
       /----lan----+                        +----lan----\\
    st_src ---wan--+                        +--wan--- st_dst      storage hosts

Each site is a Linux bridge; the link between them carries netem at both ends. Every kind of traffic
has an interface and a subnet of its own, so that links are counted apart by reading one file: the
bridges' ports stand in the root namespace's /proc/net/dev. What a port receives its host sent, so
a host's counters are its port's, exchanged.

Neighbour tables are filled in beforehand and IPv6 is off: on the WAN flows what the experiment
sends, nothing else. `wan.py` says when segmentation offload is on.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.hosts.supervise import in_namespace, run, wait_until
from testbed.network import wan

WAN_PORTS = ("src-wan", "dst-wan")


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of a host; its bridge port in the root namespace is `NAME-p`.

    Mininet's LinuxBridge takes in only ports whose names contain the bridge's.
    """

    host: str
    name: str
    site: str
    address: str
    mac: str

    @property
    def port(self) -> str:
        return f"{self.name}-p"


# The one table of names and addresses: 10.0.1 disks, 10.0.2 memory, 10.0.3 hydration.
INTERFACES = (
    Interface("vm_src", "vm_src-disk", "src", "10.0.1.1", "02:00:0a:00:01:01"),
    Interface("vm_src", "vm_src-mem", "src", "10.0.2.1", "02:00:0a:00:02:01"),
    Interface("st_src", "st_src-lan", "src", "10.0.1.2", "02:00:0a:00:01:02"),
    Interface("st_src", "st_src-wan", "src", "10.0.3.2", "02:00:0a:00:03:02"),
    Interface("vm_dst", "vm_dst-disk", "dst", "10.0.1.3", "02:00:0a:00:01:03"),
    Interface("vm_dst", "vm_dst-mem", "dst", "10.0.2.3", "02:00:0a:00:02:03"),
    Interface("st_dst", "st_dst-lan", "dst", "10.0.1.4", "02:00:0a:00:01:04"),
    Interface("st_dst", "st_dst-wan", "dst", "10.0.3.4", "02:00:0a:00:03:04"),
)
ADDRESS = {interface.name: interface.address for interface in INTERFACES}
HOSTS = ("vm_src", "st_src", "vm_dst", "st_dst")

# link -> (the port that counts it, whether rx and tx must be exchanged to be the host's own)
_COUNTED_AT = {
    "A": ("vm_src-disk-p", True),
    "B": ("vm_dst-disk-p", True),
    "C": ("st_dst-wan-p", True),
    "memory": ("vm_dst-mem-p", True),
    "wan": ("dst-wan", False),
}
LINKS = {
    "A": "VM host at the source - target, counted at the VM host",
    "B": "VM host at the destination - its server, counted at the VM host",
    "C": "proxy - target over the WAN, counted at the proxy's host",
    "memory": "VM host - VM host over the WAN, counted at the destination",
    "wan": "site - site, all of it, counted at the destination's end",
}


def read_counters(table: str) -> dict[str, tuple[int, int]]:
    """(rx, tx) bytes of every link, from the text of the root namespace's /proc/net/dev."""
    ports: dict[str, tuple[int, int]] = {}
    for line in table.splitlines():
        name, colon, counters = line.partition(":")
        if colon:
            fields = counters.split()
            ports[name.strip()] = (int(fields[0]), int(fields[8]))
    return {
        link: (ports[port][1], ports[port][0]) if exchanged else ports[port]
        for link, (port, exchanged) in _COUNTED_AT.items()
    }


def link_counters() -> dict[str, tuple[int, int]]:
    """(rx, tx) bytes of every link now."""
    return read_counters(Path("/proc/net/dev").read_text())


@dataclass(frozen=True, slots=True)
class Sites:
    """The network while it stands: host name -> pid of a process in its namespace."""

    pids: dict[str, int]


def _describe() -> Any:
    """The Mininet Topo: the table above as hosts, switches and links."""
    from mininet.topo import Topo

    topo = Topo()
    for dpid, site in (("1", "src"), ("2", "dst")):
        topo.addSwitch(site, dpid=dpid)
    for host in HOSTS:
        topo.addHost(host, ip=None)
    for interface in INTERFACES:
        topo.addLink(
            interface.host,
            interface.site,
            intfName1=interface.name,
            intfName2=interface.port,
            addr1=interface.mac,
            params1={"ip": f"{interface.address}/24"},
        )
    topo.addLink("src", "dst", intfName1=WAN_PORTS[0], intfName2=WAN_PORTS[1])
    return topo


def _set(key: str, value: str) -> None:
    path = Path("/proc/sys/net") / key
    if path.exists():
        path.write_text(value)


def _prepare_host(pid: int, profile: wan.LinkProfile) -> None:
    """What every host is tuned to: no IPv6, no ARP to wait for, TCP windows that fill the link."""
    window_bytes = max(6 * 2**20, 4 * profile.bandwidth_delay_bytes)

    def tune() -> None:
        _set("ipv6/conf/all/disable_ipv6", "1")
        _set("ipv4/conf/all/arp_ignore", "1")
        _set("ipv4/tcp_rmem", f"4096 131072 {window_bytes}")
        _set("ipv4/tcp_wmem", f"4096 16384 {window_bytes}")
        _set("ipv4/tcp_no_metrics_save", "1")
        _set("ipv4/tcp_congestion_control", profile.congestion)

    in_namespace(pid, tune)
    table = Path(f"/proc/{pid}/net/dev").read_text()
    own = [interface for interface in INTERFACES if f"{interface.name}:" in table]
    neighbours = [
        f"neigh replace {other.address} lladdr {other.mac} dev {mine.name} nud permanent\n"
        for mine in own
        for other in INTERFACES
        if other not in own and _subnet(other) == _subnet(mine)
    ]
    with tempfile.NamedTemporaryFile("w") as batch:
        batch.writelines(neighbours)
        batch.flush()
        run(["ip", "-batch", batch.name], namespace_pid=pid)
    if not profile.bursts:
        for mine in own:
            offloads = ["tso", "off", "gso", "off", "gro", "off"]
            run(["ethtool", "-K", mine.name, *offloads], namespace_pid=pid)


def _subnet(interface: Interface) -> str:
    return interface.address.rpartition(".")[0]


@contextmanager
def sites(profile: wan.LinkProfile) -> Iterator[Sites]:
    """Builds both sites and the WAN; takes down what was built, and nothing else."""
    from mininet.log import setLogLevel
    from mininet.net import Mininet
    from mininet.nodelib import LinuxBridge

    setLogLevel("error")
    if profile.congestion == "bbr":
        run(["modprobe", "tcp_bbr"])
    network = Mininet(topo=_describe(), switch=LinuxBridge, controller=None, waitConnected=False)
    try:
        network.start()
        for host in HOSTS:
            _prepare_host(network[host].pid, profile)
        _set("ipv6/conf/all/disable_ipv6", "1")
        wan.apply(profile, WAN_PORTS)
        wait_until(_forwarding, "the bridges to forward", timeout_s=40)
        yield Sites({host: network[host].pid for host in HOSTS})
    finally:
        network.stop()


def _forwarding() -> bool:
    """Whether every bridge port forwards (state 3 of the bridge's port states)."""
    ports = [interface.port for interface in INTERFACES] + list(WAN_PORTS)
    states = [Path(f"/sys/class/net/{port}/brport/state") for port in ports]
    return all(state.exists() and state.read_text().strip() == "3" for state in states)
