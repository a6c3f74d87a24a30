"""Real nbdkit servers for tests: owned, ended by pid, their log shown when something fails."""

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbd

from relocator.client import Client
from relocator.errors import RelocatorError
from tests.support.model import source_bytes

PLUGIN = Path(__file__).parents[2] / "relocator" / "plugin.py"
READY_S = 20.0
GRACE_S = 10.0
IMPATIENT_S = 3.0
TARGET_FLAGS = ("-t", "1")  # with more, nbdkit before 1.34 may abort when a client is killed


@dataclass
class Server:
    """A running nbdkit on a Unix socket."""

    process: subprocess.Popen[bytes]
    socket: Path
    control_path: Path
    log: Path
    handles: list[Any] = field(default_factory=list)

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    @property
    def control(self) -> Client:
        return Client(self.control_path)

    def status(self) -> dict[str, Any]:
        """The status object."""
        return self.control.call("status")

    def wait(self, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until all of the disk is here; the status then."""
        return await_copy(self.control, timeout_s)

    def hurry(self) -> None:
        """Let the copy go as fast as it can, if it has not ended by now."""
        hurry(self.control)

    def connect(self, export: str = "") -> Any:
        """A libnbd handle, with block status; closed when the server is asked to end."""
        handle = nbd.NBD()
        handle.set_export_name(export)
        handle.add_meta_context("base:allocation")
        handle.connect_unix(str(self.socket))
        self.handles.append(handle)
        return handle

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Disconnect, ask it to end, and wait: nbdkit ends only after its clients have gone."""
        for handle in self.handles:
            with suppress(nbd.Error):  # it may have been closed, or its server killed
                handle.shutdown()
        self.handles.clear()
        if self.process.poll() is None and self.end() is None:
            self.kill()

    def end(self, patience_s: float = GRACE_S) -> int | None:
        """Ask it to end, and wait; its status, None if it goes on.

        Who serves its control socket looks up twice a second, or when somebody comes: so somebody
        comes.
        """
        self.process.send_signal(signal.SIGTERM)
        give_up_s = time.monotonic() + patience_s
        while self.process.poll() is None and time.monotonic() < give_up_s:
            time.sleep(0.02)
            with suppress(OSError), socket.socket(socket.AF_UNIX) as knock:
                knock.connect(str(self.control_path))
        return self.process.poll()


def children(pid: int) -> list[int]:
    """The processes that a process has started, by whichever of its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # the thread has ended meanwhile
            found += map(int, (task / "children").read_text().split())
    return found


def _await(server: Server) -> None:
    give_up_s = time.monotonic() + READY_S
    while time.monotonic() < give_up_s:
        if server.process.poll() is not None:
            raise RuntimeError(f"nbdkit ended early: {server.log.read_text()}")
        if server.socket.exists():
            try:
                server.connect().shutdown()
                return
            except nbd.Error:
                pass  # not listening yet
        time.sleep(0.02)
    raise RuntimeError(f"nbdkit is not up after {READY_S} s: {server.log.read_text()}")


@contextmanager
def nbdkit(
    directory: Path, name: str, arguments: Sequence[str], within: Sequence[str] = ()
) -> Iterator[Server]:
    """`nbdkit ARGUMENTS` on a socket in `directory`; ended at the end of the block.

    `within` is put in front of the command: what enters a network namespace, say, and becomes it.
    """
    socket = directory / f"{name}.sock"
    socket.unlink(missing_ok=True)
    log = directory / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*within, "nbdkit", "-f", "-U", str(socket), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    server = Server(process, socket, directory / f"{name}.control", log)
    try:
        _await(server)
        yield server
    finally:
        server.stop()


def plugin(
    directory: Path,
    name: str,
    *keys: str,
    flags: Sequence[str] = (),
    within: Sequence[str] = (),
    file: Path = PLUGIN,
) -> Any:
    """Our plugin, or that in `file`, with the parameters `keys` and a control socket.

    What is called a target has one thread a client, as the command has it.
    """
    if name.startswith("target"):
        flags = flags or TARGET_FLAGS
    control = f"control={directory / f'{name}.control'}"
    return nbdkit(directory, name, [*flags, "python", str(file), *keys, control], within)


def proxy(directory: Path, source: Server | str | None, *keys: str, **more: Any) -> Any:
    """A proxy of a server, or of a URI, with its store in `directory`; see `plugin`."""
    uri = source.uri if isinstance(source, Server) else source
    wanted = () if uri is None else (f"source={uri}",)
    return plugin(directory, "proxy", f"store={directory / 'store'}", *wanted, *keys, **more)


@contextmanager
def moving(directory: Path, size_bytes: int, *keys: str, **more: Any) -> Iterator[Server]:
    """A proxy of `nbdkit file`, which serves so many bytes of source data."""
    (directory / "disk.img").write_bytes(source_bytes(size_bytes))
    with nbdkit(directory, "source", ["file", str(directory / "disk.img")]) as source:
        with proxy(directory, source, *keys, **more) as server:
            yield server


def target(directory: Path, size_bytes: int, *keys: str, **more: Any) -> Any:
    """Our target with so many bytes of source data; see `plugin`."""
    (directory / "disk.img").write_bytes(source_bytes(size_bytes))
    return plugin(directory, "target", f"disk={directory / 'disk.img'}", *keys, **more)


def _plugin_text() -> str:
    """Ours, to be changed and put anywhere: it finds its package all the same."""
    return PLUGIN.read_text().replace("__file__", repr(str(PLUGIN)))


def mistaken(directory: Path, mistake: str) -> Path:
    """A plugin that is ours with a mistake put in, since no real part makes it."""
    path = directory / "wrong.py"
    path.write_text(f"{_plugin_text()}\n{mistake}")
    return path


def impatient(directory: Path) -> Path:
    """A plugin that is ours and waits `IMPATIENT_S` where it else waits 10 s for a silent source.

    For what comes after that, however long it was.
    """
    path = directory / "impatient.py"
    sooner = "from relocator.source import handles\nhandles.CONNECT_S = {0}\n"
    sooner += "from relocator.source import connection\nconnection.STALL_S = {0}\n"
    first = "from relocator import config as settings\n"
    text = _plugin_text()
    assert first in text
    path.write_text(text.replace(first, sooner.format(IMPATIENT_S) + first))
    return path


def refused(*keys: str) -> str:
    """What nbdkit prints when the plugin refuses its parameters."""
    with tempfile.TemporaryDirectory() as directory:
        socket = f"{directory}/sock"
        done = subprocess.run(
            ["nbdkit", "-f", "-U", socket, "python", str(PLUGIN), *keys, "--run", "true"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode != 0, f"accepted: {keys}"
    assert done.stderr.count("\n") == 1, f"not one line: {done.stderr}"
    return done.stderr


def wait_for(condition: Any, what: str, timeout_s: float = 30.0) -> None:
    """Poll until `condition()` holds."""
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_s:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}")
        time.sleep(0.02)


def await_copy(control: Client, timeout_s: float) -> dict[str, Any]:
    """Wait until all of the disk is here, as long as the plugin is told to; the status then."""
    return control.call("wait", patience_s=timeout_s + 60, timeout_s=timeout_s)


def hurry(control: Client) -> None:
    """Let a copy go as fast as it can, if it has not ended by now."""
    try:
        control.call("set", rate="none")
    except RelocatorError:
        if control.call("status")["state"] != "complete":
            raise


def status_or_none(control: Client) -> dict[str, Any] | None:
    """The status, or None while the control socket can't be asked."""
    try:
        return control.call("status")
    except RelocatorError:
        return None
