"""QEMU's block layer, without a VM around it: qemu-storage-daemon, driven over QMP."""

from __future__ import annotations

from pathlib import Path

from testbed import services
from testbed.peers import Qmp
from testbed.supervise import ProcessError, run
from testbed.systems.base import EVERYWHERE, System
from testbed.topology import ADDRESS

CONVERGE_S = 180.0  # a mirror that owes something at every instant until then never gets ready


def _daemon(monitor: Path, blockdevs: list[str], exported: str) -> list[str]:
    """A storage daemon that exports one of its nodes over NBD and listens to QMP."""
    argv = ["qemu-storage-daemon"]
    for one in blockdevs:
        argv += ["--blockdev", one]
    address = f"addr.type=inet,addr.host={EVERYWHERE},addr.port={services.PORT}"
    argv += ["--nbd-server", f"{address},max-connections=8"]
    argv += ["--export", f"type=nbd,id=export,node-name={exported},name=,writable=on"]
    argv += ["--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off"]
    return [*argv, "--monitor", "chardev=monitor"]


def _remote_node(name: str, host: str) -> str:
    server = f"server.type=inet,server.host={ADDRESS[host]},server.port={services.PORT}"
    return f"driver=nbd,node-name={name},{server}"


class Stream(System):
    """An overlay with copy-on-read at the destination, and `block-stream` into it."""

    name = "qemu-stream"

    def prepare(self) -> None:
        work = self.ground.work
        file, monitor = work / "overlay.qcow2", work / "stream.qmp"
        size = str(self.ground.size_bytes)
        run(["qemu-img", "create", "-q", "-f", "qcow2", str(file), size])
        overlay = f"driver=qcow2,node-name=overlay,file.driver=file,file.filename={file}"
        nodes = [
            _remote_node("source", "st_src-wan"),
            f"{overlay},backing=source",
            "driver=copy-on-read,node-name=keep,file=overlay",
        ]
        self.ground.at_destination("moved", _daemon(monitor, nodes, "keep"))
        self._qmp = Qmp(monitor)

    def copy(self) -> None:
        self._qmp.call("block-stream", device="overlay", **{"job-id": "stream"})
        _expect_success("block-stream", self._qmp.wait_for("BLOCK_JOB_COMPLETED"))
        self._qmp.call("blockdev-del", **{"node-name": "source"})

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
        monitor = self.ground.work / "mirror.qmp"
        image = f"driver=file,node-name=image,filename={self.ground.image},locking=off"
        self.source = self.ground.at_source("source", _daemon(monitor, [image], "image"))
        self._qmp = Qmp(monitor)

    def prepare(self) -> None:
        with self.image.open("wb") as file:
            file.truncate(self.ground.size_bytes)
        self.ground.at_destination(
            "moved", services.file_command(self.image, EVERYWHERE, services.PORT)
        )

    def copy_first(self) -> None:
        server = {"type": "inet", "host": ADDRESS["st_dst-wan"], "port": str(services.PORT)}
        self._qmp.call("blockdev-add", **{"driver": "nbd", "node-name": "copy", "server": server})
        mirror = {"job-id": "mirror", "device": "image", "target": "copy", "sync": "full"}
        mode = self.settings.get("copy-mode", "background")
        self._qmp.call("blockdev-mirror", **mirror, **{"copy-mode": mode})
        self._qmp.wait_for("BLOCK_JOB_READY", CONVERGE_S)

    def hand_over(self) -> None:
        self._qmp.call("job-complete", id="mirror")
        _expect_success("blockdev-mirror", self._qmp.wait_for("BLOCK_JOB_COMPLETED"))
        self._qmp.call("block-export-del", id="export", mode="hard")


def _expect_success(job: str, done: dict[str, object]) -> None:
    if "error" in done:
        raise ProcessError(f"{job}: {done['error']}")
