"""DRBD, asynchronous (protocol A): a block device replicated by the kernel, and its roles swapped.

Both nodes are in one kernel here, on loop devices over the image at the source and the empty one at
the destination. DRBD opens its connections in the kernel's first network namespace, whoever asks;
at both sites relays lead them through the WAN. These keep in flight what a link holds, as LINBIT's
proxy for long links does.

The guest may move once the first synchronisation is done; what it writes is replicated meanwhile,
and is waited for only when the buffers towards the WAN are full. At the switch the source lets go
of the device and becomes secondary, which ends once the other has all. A secondary's device can't
be opened, so what serves it at the destination gets it at the switch (`blockdev-reopen`).
"""

import os

from testbed.hosts import qmp, services
from testbed.hosts.drbd import Node
from testbed.hosts.supervise import run, wait_until
from testbed.network.crossing import End, Way
from testbed.network.topology import ADDRESS
from testbed.systems import storage_daemon
from testbed.systems.base import COPY_LIMIT_S, EVERYWHERE, System

PORTS = {"src": 7788, "dst": 7789}
_AWAY = 100  # where a site's relay takes what goes to the other's port
_LOOPBACK = "127.0.0.1"


def _ends(here: str, there: str) -> tuple[str, str]:
    """The addresses of a site's connection: its own, and its relay's."""
    return f"{_LOOPBACK}:{PORTS[here]}", f"{_LOOPBACK}:{PORTS[there] + _AWAY}"


class Drbd(System):
    """DRBD, asynchronous (protocol A): replicated as it is written, roles swapped at the switch."""

    name = "drbd"
    copies_first = True
    has_all = True

    def start_source(self) -> None:
        run(["modprobe", "drbd", "usermode_helper=/bin/true"])
        place = self.place
        self._here, self._there = Node("guest-src", 0), Node("guest-dst", 1)
        self._node = self._here.start(place.servers, place.image, place.work / "source.meta")
        self._here.set_role("primary", "--force")
        command = services.file_command(self._here.device, EVERYWHERE, services.PORT)
        self.source = place.at_source("source", command)

    def prepare(self) -> None:
        place = self.place
        with self.image.open("wb") as file:
            file.truncate(place.size_bytes)
        self._there.start(place.servers, self.image, place.work / "moved.meta")
        self._relay("src", "dst")
        self._relay("dst", "src")
        self._here.hold_sync()
        self._there.connect(*_ends("dst", "src"))
        self._here.connect(*_ends("src", "dst"))
        apart = "UpToDate/Inconsistent"
        wait_until(lambda: self._here.disks() == apart, "DRBD to be connected", COPY_LIMIT_S)
        monitor = place.work / "drbd.qmp"
        nodes = [
            f"driver=null-co,node-name=nothing,size={place.size_bytes},read-zeroes=on",
            "driver=raw,node-name=disk,file=nothing",
        ]
        daemon = storage_daemon.daemon(monitor, nodes, "disk", storage_daemon.LISTEN)
        place.at_destination("moved", daemon)
        self._qmp = qmp.connect(monitor)

    def _relay(self, here: str, there: str) -> None:
        """The relays of one site: out to the other, and in from it."""
        kernel, site = os.getpid(), self.place.sites.pids[f"st_{here}"]
        out, far = PORTS[there] + _AWAY, End(site, ADDRESS[f"st_{there}-wan"], PORTS[there])
        door = End(site, ADDRESS[f"st_{here}-wan"], PORTS[here])
        ways = [
            Way(End(kernel, _LOOPBACK, out), far),
            Way(door, End(kernel, _LOOPBACK, PORTS[here])),
        ]
        argv = ["python3", "-m", "testbed.network.crossing", *map(str, ways)]
        relay = self.place.servers.start(f"crossing-{here}", argv)
        listens = services.is_listening
        relay.wait_until(lambda: listens(kernel, out) and listens(site, door.port), "the relays")

    def copy_first(self) -> None:
        self._here.begin_sync()
        in_step = "UpToDate/UpToDate"
        wait_until(lambda: self._here.disks() == in_step, "DRBD to be in step", COPY_LIMIT_S)

    def hand_over(self) -> None:
        self.place.servers.cut_off(self.source)  # nbdkit would wait for the guest to hang up
        self._here.set_role("secondary")
        let_go = "Secondary/Secondary"  # before it knows so, DRBD would ask again after 0.6 s
        wait_until(
            lambda: self._there.roles() == let_go, "the source to let go", COPY_LIMIT_S, 0.002
        )
        self._there.set_role("primary")
        self._here.disconnect(*_ends("src", "dst"))  # or the source would get the guest's writes
        cache = {"direct": True, "no-flush": False}
        replica = {"driver": "host_device", "filename": str(self._there.device)}
        self._qmp.call("blockdev-add", node_name="replica", cache=cache, **replica)
        served = {"driver": "raw", "node-name": "disk", "file": "replica"}
        self._qmp.call("blockdev-reopen", options=[served])

    def shut_off_source(self) -> None:
        """Its node ends; the server has ended at the switch."""
        self.place.servers.stop(self._node)
