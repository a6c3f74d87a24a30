"""qemu-storage-daemon: its command line, its monitor, a disk that streams in from the source."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbed.hosts import services
from testbed.hosts.supervise import ProcessError, run
from testbed.network.topology import ADDRESS

JOB_LIMIT_S = 3600.0


class Qmp:
    """QEMU's monitor, one command at a time; events are kept until they are asked for."""

    def __init__(self, path: Path) -> None:
        self._link = socket.socket(socket.AF_UNIX)
        self._link.connect(str(path))
        self._link.settimeout(JOB_LIMIT_S)
        self._lines = self._link.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._lines.readline()
        self.call("qmp_capabilities")

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise ProcessError("QEMU closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message

    def call(self, command: str, **arguments: Any) -> Any:
        request = {"execute": command, "arguments": arguments}
        self._link.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self._next()
            if "error" in message:
                raise ProcessError(f"QMP {command}: {message['error']}")
            if "return" in message:
                return message["return"]
            self._events.append(message)

    def wait_for(self, event: str, timeout_s: float = JOB_LIMIT_S) -> dict[str, Any]:
        """The event's data; ProcessError if nothing is said for so long."""
        self._link.settimeout(timeout_s)
        while True:
            try:
                message = self._events.pop(0) if self._events else self._next()
            except TimeoutError as late:
                raise ProcessError(f"QEMU: no {event} within {timeout_s:g} s") from late
            if message.get("event") == event:
                data: dict[str, Any] = message["data"]
                return data


def daemon(monitor: Path, blockdevs: Sequence[str], exported: str, listen: str) -> list[str]:
    """A storage daemon that exports one of its nodes over NBD at `listen` and listens to QMP."""
    argv = ["qemu-storage-daemon"]
    for one in blockdevs:
        argv += ["--blockdev", one]
    argv += ["--nbd-server", f"{listen},max-connections=8"]
    argv += ["--export", f"type=nbd,id=export,node-name={exported},name=,writable=on"]
    argv += ["--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off"]
    return [*argv, "--monitor", "chardev=monitor"]


def streaming(work: Path, size_bytes: int, monitor: Path, listen: str) -> list[str]:
    """A daemon that serves the source's disk through an overlay, which keeps what is read."""
    file = work / "overlay.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(file), str(size_bytes)])
    server = f"server.type=inet,server.host={ADDRESS['st_src-wan']},server.port={services.PORT}"
    overlay = f"driver=qcow2,node-name=overlay,file.driver=file,file.filename={file}"
    nodes = [
        f"driver=nbd,node-name=source,{server}",
        f"{overlay},backing=source",
        "driver=copy-on-read,node-name=keep,file=overlay",
    ]
    return daemon(monitor, nodes, "keep", listen)


def stream(qmp: Qmp) -> None:
    """Copies all of the source into the overlay of a `streaming` daemon."""
    qmp.call("block-stream", device="overlay", **{"job-id": "stream"})
    finish_job(qmp, "block-stream")


def finish_job(qmp: Qmp, job: str) -> None:
    """Waits for the job under way; ProcessError if it failed."""
    done = qmp.wait_for("BLOCK_JOB_COMPLETED")
    if "error" in done:
        raise ProcessError(f"{job}: {done['error']}")
