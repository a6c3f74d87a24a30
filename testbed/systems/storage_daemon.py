"""qemu-storage-daemon: its command line, its monitor, a disk that streams in from the source."""

from collections.abc import Sequence
from pathlib import Path

from relocator.moving.monitor import Monitor
from testbed.hosts import qmp, services
from testbed.hosts.supervise import ProcessError, run
from testbed.network.topology import ADDRESS
from testbed.systems.base import EVERYWHERE

JOB_LIMIT_S = 3600.0
#: where a daemon that guests and the other site reach listens
LISTEN = f"addr.type=inet,addr.host={EVERYWHERE},addr.port={services.PORT}"


def daemon(monitor: Path, blockdevs: Sequence[str], exported: str, listen: str) -> list[str]:
    """A storage daemon that exports one of its nodes over NBD at `listen` and listens to QMP."""
    argv = ["qemu-storage-daemon"]  # which is up to what comes first: who sees the last, may ask
    argv += ["--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off"]
    argv += ["--monitor", "chardev=monitor"]
    for one in blockdevs:
        argv += ["--blockdev", one]
    argv += ["--nbd-server", f"{listen},max-connections=8"]
    return [*argv, "--export", f"type=nbd,id=export,node-name={exported},name=,writable=on"]


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


def stream(monitor: Monitor) -> None:
    """Copies all of the source into the overlay of a `streaming` daemon."""
    monitor.call("block-stream", device="overlay", job_id="stream")
    finish_job(monitor, "block-stream")


def finish_job(monitor: Monitor, job: str) -> None:
    """Waits for the only job of a daemon; ProcessError if it failed."""
    done = qmp.await_event(monitor, "BLOCK_JOB_COMPLETED", JOB_LIMIT_S).data
    if "error" in done:
        raise ProcessError(f"{job}: {done['error']}")
