"""QEMU's block layer, without a VM around it: qemu-storage-daemon, driven over QMP."""

from pathlib import Path

from testbed.hosts import qmp, services
from testbed.network.topology import ADDRESS
from testbed.systems import storage_daemon as qemu
from testbed.systems.base import System

CONVERGE_S = 60.0  # a mirror that owes something at every instant until then never gets ready


class Stream(System):
    """An overlay with copy-on-read at the destination, and `block-stream` into it."""

    name = "qemu-stream"

    def prepare(self) -> None:
        place, monitor = self.place, self.place.work / "stream.qmp"
        command = qemu.streaming(place.work, place.size_bytes, monitor, qemu.LISTEN)
        place.at_destination("moved", command)
        self._monitor = qmp.connect(monitor)

    def copy(self) -> None:
        qemu.stream(self._monitor)
        self._monitor.call("blockdev-del", node_name="source")

    def keep_image(self, device: Path) -> None:
        self.read_all(device)


class Mirror(System):
    """Pre-copy: the source's server mirrors the disk, and every write, until the guest may move.

    In mode `background` (QEMU's and libvirt's default) what is written is copied later, again and
    again, and the guest may move in an instant in which nothing is owed: on a long link, and with a
    guest that writes all the time, there may be none. In mode `write-blocking` every write of the
    guest waits for the destination, and the copy comes to an end.
    """

    name = "mirror"
    keys = frozenset({"copy-mode"})
    copies_first = True
    has_all = True

    def start_source(self) -> None:
        monitor = self.place.work / "mirror.qmp"
        image = f"driver=file,node-name=image,filename={self.place.image},locking=off"
        command = qemu.daemon(monitor, [image], "image", qemu.LISTEN)
        self.source = self.place.at_source("source", command)
        self._monitor = qmp.connect(monitor)

    def prepare(self) -> None:
        self.serve_empty_image()

    def copy_first(self) -> None:
        server = {"type": "inet", "host": ADDRESS["st_dst-wan"], "port": str(services.PORT)}
        self._monitor.call(
            "blockdev-add", **{"driver": "nbd", "node-name": "copy", "server": server}
        )
        mirror = {"job-id": "mirror", "device": "image", "target": "copy", "sync": "full"}
        mode = self.settings.get("copy-mode", "background")
        self._monitor.call("blockdev-mirror", **mirror, **{"copy-mode": mode})
        qmp.await_event(self._monitor, "BLOCK_JOB_READY", CONVERGE_S)

    def hand_over(self) -> None:
        self._monitor.call("job-complete", id="mirror")
        qemu.finish_job(self._monitor, "blockdev-mirror")
        self._monitor.call("block-export-del", id="export", mode="hard")
