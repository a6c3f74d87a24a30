"""A QEMU's disk without a VM: a storage daemon where a guest writes, and a bitmap records that."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd

from testbed.hosts import qmp
from tests.support.servers import wait_for

_SEEN = "seen"


class StorageDaemon:
    """The disk is at the export `disk`, without writes; a guest writes at the export `guest`."""

    def __init__(self, process: subprocess.Popen[bytes], monitor: Path, uri: str) -> None:
        self.process = process
        self.image_uri = uri
        self._monitor = qmp.connect(monitor)
        self.call("block-export-add", id="guest", node_name="disk", name="guest", writable=True)
        driver = {"driver": "raw", "file": "disk", "read-only": True}
        self._monitor.call("blockdev-add", node_name=_SEEN, **driver)

    def call(self, command: str, **arguments: Any) -> None:
        """A command of QMP; of an export, an NBD one."""
        kind = {"type": "nbd"} if command == "block-export-add" else {}
        self._monitor.call(command, **kind, **arguments)

    @property
    def uri(self) -> str:
        """Where a proxy finds the disk."""
        return self.image_uri.format("disk")

    def guest(self) -> Any:
        """A handle of the guest's."""
        handle = nbd.NBD()
        handle.connect_uri(self.image_uri.format("guest"))
        return handle

    def record(self, name: str, granularity: int = 4096) -> None:
        """A bitmap begins."""
        self.call("block-dirty-bitmap-add", node="disk", name=name, granularity=granularity)

    def clear(self, name: str) -> None:
        """A bitmap begins again."""
        self.call("block-dirty-bitmap-clear", node="disk", name=name)

    def forget(self, name: str) -> None:
        """A bitmap ends."""
        self.call("block-dirty-bitmap-remove", node="disk", name=name)

    def offer(self, *bitmaps: str) -> None:
        """From now on the disk is there, and these bitmaps of it."""
        given = [{"node": "disk", "name": name} for name in bitmaps]
        self.call("block-export-add", id=_SEEN, node_name=_SEEN, name="disk", bitmaps=given)

    def hide(self) -> None:
        """From now on the disk is not there; who is connected is disconnected."""
        since = len(self._monitor.events)
        self.call("block-export-del", id=_SEEN, mode="hard")
        qmp.await_event(self._monitor, "BLOCK_EXPORT_DELETED", 30, since=since)

    def close(self) -> None:
        """kill -9."""
        self._monitor.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def storage_daemon(
    directory: Path, image: Path, address: str | None = None, within: Sequence[str] = ()
) -> Iterator[StorageDaemon]:
    """A daemon for the image, on a Unix socket or at `address` (HOST:PORT); see `nbdkit`."""
    socket, monitor = directory / "qemu.sock", directory / "qmp.sock"
    listen, uri = f"addr.type=unix,addr.path={socket}", f"nbd+unix:///{{}}?socket={socket}"
    if address is not None:
        host, _, port = address.partition(":")
        listen, uri = f"addr.type=inet,addr.host={host},addr.port={port}", f"nbd://{address}/{{}}"
    argv = [*within, "qemu-storage-daemon", "--nbd-server", listen]
    argv += ["--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off"]
    argv += ["--monitor", "chardev=monitor"]
    argv += ["--blockdev", f"driver=file,node-name=disk,filename={image}"]
    with (directory / "qemu.log").open("ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(monitor.exists, "the storage daemon's monitor")
        server = StorageDaemon(process, monitor, uri)
        yield server
        server.close()
    finally:
        process.kill()
        process.wait()
