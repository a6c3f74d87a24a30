"""qemu-storage-daemon: its command line, its monitor, a disk that streams in from the source."""

from collections.abc import Sequence
from pathlib import Path

from testbed.hosts import services
from testbed.hosts.qmp import Monitor
from testbed.hosts.supervise import ProcessError, run
from testbed.network.topology import ADDRESS

JOB_LIMIT_S = 3600.0


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


def stream(qmp: Monitor) -> None:
    """Copies all of the source into the overlay of a `streaming` daemon."""
    qmp.call("block-stream", device="overlay", **{"job-id": "stream"})
    finish_job(qmp, "block-stream")


def finish_job(qmp: Monitor, job: str) -> None:
    """Waits for the job under way; ProcessError if it failed."""
    done = qmp.wait_for("BLOCK_JOB_COMPLETED", JOB_LIMIT_S)
    if "error" in done:
        raise ProcessError(f"{job}: {done['error']}")
