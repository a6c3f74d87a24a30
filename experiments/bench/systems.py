"""The systems of the local path: each a server on a Unix socket that serves the same region.

Ours are started as a user starts them, with `relocator target` and `relocator proxy`, so that the
number of threads and everything else is what the command chooses. The proxy that is still
relocating has the region and lacks the rest of its disk; its copy is paused except while the
system "copy running" is measured, so it serves two systems. The others copy from an `nbdkit file`
of the same image, and are read through once before they are measured. xNBD, where it is installed,
speaks TCP only, so our proxy is measured over TCP beside it.
"""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from experiments.bench.load import REGION_BYTES, fill, unix_uri
from relocator.client import Client
from testbed.hosts.supervise import ProcessError, Supervisor, is_listening, run, wait_until

REFERENCE = "nbdkit file"
PEER = "QEMU copy-on-read"
ABSENT_BYTES = 3 * REGION_BYTES
COPY_RATE = "100M"
SWEPT_THREADS = (1, 2, 4, 8, 16)
_START_TIMEOUT_S = 30.0
_COMPLETE_TIMEOUT_S = 120.0


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class System:
    """Something to measure; `before` and `after` surround each of its jobs."""

    name: str
    uri: str
    before: Callable[[], None] = _nothing
    after: Callable[[], None] = _nothing


@dataclass(slots=True)
class Bench:
    """Starts the systems in a work directory; the supervisor ends them."""

    supervisor: Supervisor
    work: Path
    threads: int | None = None
    systems: list[System] = field(default_factory=list)

    def serve(self, name: str, argv: list[str], socket: Path) -> str:
        """Starts a server, waits for its socket and returns its URI."""
        process = self.supervisor.start(name, argv)
        process.wait_until(socket.exists, f"{name}'s socket")
        return unix_uri(socket)

    def relocator(self, name: str, *arguments: object, port: int = 0) -> tuple[str, Client]:
        """One of ours: `relocator ARGUMENTS... --control`, on a Unix socket or a port."""
        socket, control = self.work / f"{name}.nbd", self.work / f"{name}.control"
        argv = [sys.executable, "-m", "relocator.cli.main", *(str(one) for one in arguments)]
        argv += ["--listen", f"127.0.0.1:{port}"] if port else ["--socket", str(socket)]
        argv += ["--control", str(control)]
        argv += ["--threads", str(self.threads)] if self.threads else []
        uri = self.serve_tcp(name, argv, port) if port else self.serve(name, argv, socket)
        wait_until(control.exists, f"{name}'s control socket", _START_TIMEOUT_S)
        client = Client(control)
        client.call("status")
        return uri, client

    def serve_tcp(
        self, name: str, argv: list[str], port: int, stop: signal.Signals = signal.SIGTERM
    ) -> str:
        """The same on a port of the loopback."""
        process = self.supervisor.start(
            name, argv, stop_signal=stop, good_statuses=(0, -signal.SIGTERM, -stop)
        )
        process.wait_until(lambda: is_listening(os.getpid(), port), f"{name}'s port")
        return f"nbd://127.0.0.1:{port}"

    def nbdkit(self, name: str, *arguments: object) -> str:
        """An nbdkit of its own."""
        socket = self.work / f"{name}.nbd"
        argv = ["nbdkit", "-f", "-U", str(socket), *(str(one) for one in arguments)]
        return self.serve(name, argv, socket)

    def image(self, name: str, size_bytes: int = REGION_BYTES) -> Path:
        """A new image full of data that is not zero."""
        path = self.work / f"{name}.img"
        piece = bytes(range(1, 256)) * 4096 + b"\1" * 4096
        with path.open("wb") as file:
            for _ in range(size_bytes // len(piece)):
                file.write(piece)
        return path

    def add(self, system: System) -> None:
        self.systems.append(system)


def start_plain(bench: Bench) -> None:
    """Servers of a whole image."""
    uri = bench.nbdkit("file", "file", bench.image("file"))
    bench.add(System(REFERENCE, uri))
    uri, _ = bench.relocator("target", "target", bench.image("target"))
    bench.add(System("relocator target", uri))


def start_relocating(bench: Bench) -> None:
    """Our proxy while it relocates."""
    uri, client = _relocating(bench, "proxy")
    bench.add(System("relocator proxy, copy paused", uri))
    resume, pause = partial(_call, client, "resume"), partial(_call, client, "pause")
    bench.add(System("relocator proxy, copy running", uri, resume, pause))


def _relocating(bench: Bench, name: str, port: int = 0) -> tuple[str, Client]:
    """A proxy that has the region and whose copy is paused."""
    size_bytes = REGION_BYTES + ABSENT_BYTES
    source = bench.nbdkit(f"{name}-source", "pattern", f"size={size_bytes}")
    options = ["--background", "off", "--order", "sequential", "--rate", COPY_RATE]
    store = bench.work / f"{name}-store"
    uri, client = bench.relocator(name, "proxy", store, source, *options, port=port)
    fill(uri)
    client.call("pause")
    client.call("set", background="on")
    return uri, client


def start_complete(bench: Bench) -> None:
    """Our proxy whose disk is all here."""
    source = bench.nbdkit("whole", "pattern", f"size={REGION_BYTES}")
    uri, client = bench.relocator("complete", "proxy", bench.work / "complete", source)
    client.call("wait", patience_s=_COMPLETE_TIMEOUT_S)
    bench.add(System("relocator proxy, complete", uri))


def start_graduated(bench: Bench) -> None:
    """Our proxy after `--graduate` has given the disk to a plain server."""
    source = bench.nbdkit("parted", "pattern", f"size={REGION_BYTES}")
    store = bench.work / "graduated"
    uri, client = bench.relocator("graduated", "proxy", store, source, "--graduate")
    wait_until(
        lambda: bool(client.call("status")["graduated"]),
        "the graduation",
        _COMPLETE_TIMEOUT_S,
        every_s=0.2,
    )
    bench.add(System("relocator proxy, graduated", uri))


def _call(client: Client, verb: str) -> None:
    status = client.call(verb)
    if status["state"] != "active":
        raise ProcessError(f"the proxy that should be relocating is {status['state']}")


def start_qemu(bench: Bench) -> None:
    """QEMU's plain server, and its copy-on-read over an NBD source."""
    socket = bench.work / "qemu.nbd"
    image = str(bench.image("qemu"))
    argv = ["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", str(socket), image]
    bench.add(System("qemu-nbd raw", bench.serve("qemu-nbd", argv, socket)))

    bench.nbdkit("qemu-source", "file", bench.image("qemu-source"))
    argv = copy_on_read_command(bench.work, bench.work / "qemu-source.nbd", REGION_BYTES)
    uri = bench.serve("qemu-cor", argv, bench.work / "qemu-cor.nbd")
    fill(uri)
    bench.add(System(PEER, uri))


def copy_on_read_command(work: Path, source: Path, size_bytes: int) -> list[str]:
    """qemu-storage-daemon: an overlay that keeps what is read from an NBD source."""
    overlay, socket = work / "qemu-cor.qcow2", work / "qemu-cor.nbd"
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(overlay), str(size_bytes)])
    return [
        "qemu-storage-daemon",
        *("--blockdev", f"driver=nbd,node-name=source,server.type=unix,server.path={source}"),
        "--blockdev",
        f"driver=qcow2,node-name=overlay,file.driver=file,file.filename={overlay},backing=source",
        *("--blockdev", "driver=copy-on-read,node-name=keep,file=overlay"),
        *("--nbd-server", f"addr.type=unix,addr.path={socket}"),
        *("--export", "type=nbd,id=export,node-name=keep,name=,writable=on"),
    ]


def start_cow(bench: Bench) -> None:
    """nbdkit's cow filter over an NBD source."""
    bench.nbdkit("cow-source", "file", bench.image("cow-source"))
    source = bench.work / "cow-source.nbd"
    uri = bench.nbdkit("cow", "--filter=cow", "nbd", f"socket={source}", "cow-on-read=true")
    fill(uri)
    bench.add(System("nbdkit cow-on-read", uri))


def start_xnbd(bench: Bench) -> None:
    """xNBD's proxy, where it is installed, and ours over TCP as well.

    It may wait for ever for a session to end, so it gets processes of its own to be killed with.
    """
    if shutil.which("xnbd-server") is None or os.geteuid() != 0:
        return
    server = ["unshare", "--pid", "--fork", "--kill-child", "xnbd-server"]
    source, port, our_port = (free_port() for _ in range(3))
    image, cache = bench.image("xnbd-source"), bench.work / "xnbd"
    target = [*server, "--target", "--lport", str(source), str(image)]
    bench.serve_tcp("xnbd-target", target, source, signal.SIGKILL)
    files = [f"{cache}.{kind}" for kind in ("cache", "bitmap", "control")]
    proxy = [*server, "--proxy", "--lport", str(port), "127.0.0.1", str(source), *files]
    uri = bench.serve_tcp("xnbd-proxy", proxy, port, signal.SIGKILL)
    fill(uri)
    bench.add(System("xNBD proxy (TCP)", uri))
    uri, _ = _relocating(bench, "proxy-tcp", our_port)
    bench.add(System("relocator proxy, copy paused (TCP)", uri))


def free_port() -> int:
    """A port of the loopback that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_thread_sweep(bench: Bench) -> None:
    """A target, which is what a complete proxy is, with several numbers of nbdkit threads."""
    bench.add(System(REFERENCE, bench.nbdkit("file", "file", bench.image("file"))))
    for threads in SWEPT_THREADS:
        bench.threads = threads
        name = f"target-{threads}"
        uri, _ = bench.relocator(name, "target", bench.image(name))
        bench.add(System(f"relocator target, {threads} threads", uri))


def start_all(bench: Bench) -> None:
    """Every system, in the order of the table."""
    start_plain(bench)
    start_relocating(bench)
    start_complete(bench)
    start_graduated(bench)
    start_qemu(bench)
    start_cow(bench)
    start_xnbd(bench)
