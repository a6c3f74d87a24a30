"""`relocator proxy --graduate`: the server changes at the same address, and nothing is lost."""

import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.cli import metrics
from relocator.client import Client
from relocator.errors import RelocatorError
from tests.support.model import source_bytes
from tests.support.servers import Server, nbdkit, plugin, status_or_none, wait_for
from tests.support.sources import free_port

SIZE_BYTES = 8 << 20
BLOCK = 4096
COMMAND = ("-m", "relocator.cli.main")
#: the same, whose first graduation fails once the proxy has ended
FAILS_ONCE = """\
import sys
from relocator.cli import graduate, main
from relocator.errors import ConfigError

graduate.AGAIN_S = 0.5
real, calls = graduate.graduate, []


def failing(store, disk):
    found = real(store, disk) if len(calls) != 1 else None
    calls.append(found)
    if len(calls) == 2:
        raise ConfigError("disk=IMAGE: is in use by another process")
    return found


graduate.graduate = failing
sys.exit(main.main())
"""


class Graduate:
    """A running `relocator proxy --graduate`."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        port: int | None = None,
        main: Sequence[str] = COMMAND,
    ) -> None:
        self.socket, self.control_path = directory / "g.sock", directory / "g.control"
        self.address: Any = str(self.socket) if port is None else ("127.0.0.1", port)
        self.uri = (
            f"nbd+unix:///?socket={self.socket}" if port is None else f"nbd://127.0.0.1:{port}"
        )
        where = (
            ["--socket", str(self.socket)] if port is None else ["--listen", f"127.0.0.1:{port}"]
        )
        command = [sys.executable, *main, "proxy", str(directory / "store")]
        command += [*arguments, "--graduate", "--control", str(self.control_path), *where]
        self.log = directory / "g.log"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

    @property
    def control(self) -> Client:
        return Client(self.control_path)

    def status(self) -> dict[str, Any]:
        """The status, or nothing while the control socket isn't up."""
        status = status_or_none(self.control)
        assert status is not None or self.process.poll() is None, self.log.read_text()
        return status or {"state": "starting", "graduated": False}

    def await_state(self, **wanted: Any) -> dict[str, Any]:
        wait_for(lambda: wanted.items() <= self.status().items(), f"{wanted}")
        return self.status()

    def connect(self) -> Any:
        handle = nbd.NBD()
        handle.connect_uri(self.uri)
        return handle

    def server_pid(self) -> int:
        """The nbdkit that serves at the moment, or is about to: a fork takes its time to be one."""
        wait_for(lambda: len(self._servers()) == 1, "nbdkit")
        return self._servers()[0]

    def _servers(self) -> list[int]:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(one) for one in children if _comm(int(one)) == "nbdkit"]


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@contextmanager
def graduate(directory: Path, *arguments: str, **more: Any) -> Iterator[Graduate]:
    running = Graduate(directory, *arguments, **more)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


@contextmanager
def source(directory: Path) -> Iterator[Server]:
    (directory / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    with nbdkit(directory, "source", ["file", str(directory / "disk.img")]) as server:
        yield server


class Guest(threading.Thread):
    """Reads and writes blocks of its own part of the disk; comes back when it is disconnected."""

    def __init__(self, server: Graduate, model: bytearray, part: int, parts: int) -> None:
        super().__init__(daemon=True)
        self._server, self._model = server, model
        self._blocks = range(part, SIZE_BYTES // BLOCK, parts)
        self._random = random.Random(part)
        self._handle: Any = None
        self.over = threading.Event()
        self.requests = self.reconnects = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self._step()
        except BaseException as error:
            self.failure = error

    def _step(self) -> None:
        offset = self._random.choice(self._blocks) * BLOCK
        if self._random.random() < 0.5:
            data = self._random.randbytes(BLOCK)
            flags = nbd.CMD_FLAG_FUA if self._random.random() < 0.02 else 0
            self._repeat(lambda handle: handle.pwrite(data, offset, flags))
            self._model[offset : offset + BLOCK] = data
        else:
            found = self._repeat(lambda handle: handle.pread(BLOCK, offset))
            assert found == self._model[offset : offset + BLOCK], f"block at {offset}"
        self.requests += 1

    def _repeat(self, request: Any) -> Any:
        """Repeat a request that got no answer, as QEMU does with reconnect-delay."""
        while True:
            try:
                if self._handle is None:
                    self._handle = self._server.connect()
                return request(self._handle)
            except nbd.Error as error:
                assert "refused" not in str(error), error
                assert "No such file" not in str(error), error
                self._handle = None
                self.reconnects += 1


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_a_guest_that_reconnects_notices_nothing(tmp_path: Path, tcp: bool) -> None:
    port = free_port() if tcp else None
    with (
        source(tmp_path) as origin,
        graduate(tmp_path, origin.uri, "--rate", "40M", port=port) as server,
    ):
        fields = set(server.await_state(state="active"))
        model = source_bytes(SIZE_BYTES)
        guests = [Guest(server, model, part, 4) for part in range(4)]
        for guest in guests:
            guest.start()
        wait_for(lambda: _connects(server) and server.status()["graduated"], "the graduation")
        assert set(server.status()) == fields
        assert list(metrics.families({"disk": server.status()}))
        with pytest.raises(RelocatorError, match="must be a number from 1"):
            server.control.call("map", cells="many")
        before = [guest.requests for guest in guests]
        wait_for(
            lambda: all(
                guest.requests > count + 50 for guest, count in zip(guests, before, strict=True)
            ),
            "requests after it",
        )
        for guest in guests:
            guest.over.set()
            guest.join(30)
            assert guest.failure is None
            assert guest.reconnects > 0
        assert server.connect().pread(SIZE_BYTES, 0) == model
        assert (tmp_path / "store" / "disk.img").read_bytes() == model


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended may be there until somebody asks how."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _connects(server: Graduate) -> bool:
    """Connect and go, as often as anybody looks: never refused."""
    family = socket.AF_UNIX if isinstance(server.address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.connect(server.address)
    return True


def test_qemus_reconnect_carries_it_over(tmp_path: Path) -> None:
    with source(tmp_path) as origin, graduate(tmp_path, origin.uri, "--rate", "40M") as server:
        server.await_state(state="active")
        image = f"driver=nbd,server.type=unix,server.path={server.socket},reconnect-delay=20"
        with subprocess.Popen(
            ["qemu-io", "--image-opts", image],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as guest:
            assert guest.stdin is not None
            assert guest.stdout is not None
            guest.stdin.write("write -P 17 1M 64k\n")
            guest.stdin.flush()
            server.await_state(graduated=True)
            said, _ = guest.communicate("read -P 17 1M 64k\nwrite -P 18 2M 64k\nflush\n", 60)
            assert guest.returncode == 0, said
        assert "failed" not in said
        assert "read 65536/65536" in said
        content = (tmp_path / "store" / "disk.img").read_bytes()
        assert content[1 << 20 : (1 << 20) + 65536] == b"\x11" * 65536
        assert content[2 << 20 : (2 << 20) + 65536] == b"\x12" * 65536


def test_tls_towards_clients_is_kept(tmp_path: Path) -> None:
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:" + "5a" * 32 + "\n")
    options = f"--tls=require --tls-psk={keys}"
    with (
        source(tmp_path) as origin,
        graduate(tmp_path, origin.uri, f"--nbdkit-options={options}") as server,
    ):
        server.await_state(graduated=True)
        with pytest.raises(nbd.Error):
            server.connect()
        handle = nbd.NBD()
        handle.set_tls_psk_file(str(keys))
        handle.connect_uri(f"nbds+unix://alice@/?socket={server.socket}")
        assert handle.pread(SIZE_BYTES, 0) == source_bytes(SIZE_BYTES)


def test_a_complete_disk_is_served_plainly_at_once_and_says_so(tmp_path: Path) -> None:
    with source(tmp_path) as origin, graduate(tmp_path, origin.uri) as server:
        assert server.control.call("wait") if server.await_state(graduated=True) else None
    with graduate(tmp_path) as server:
        status = server.await_state(graduated=True)
        assert (status["role"], status["state"]) == ("target", "complete")
        assert server.connect().pread(SIZE_BYTES, 0) == source_bytes(SIZE_BYTES)
        with pytest.raises(RelocatorError, match="'seal' is refused: the disk has graduated"):
            server.control.call("seal")
        assert server.control.call("map", cells=9)["map"]["present"] == [1.0] * 9
        assert server.control.call("activate")["already_active"]


def test_sigterm_ends_server_and_supervisor_and_frees_the_address(tmp_path: Path) -> None:
    with source(tmp_path) as origin, graduate(tmp_path, origin.uri) as server:
        server.await_state(graduated=True)
        child = server.server_pid()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert not Path(f"/proc/{child}").exists()
        assert not server.socket.exists()
        assert not server.control_path.exists()


def test_the_servers_own_failure_is_passed_on(tmp_path: Path) -> None:
    nowhere = f"nbd+unix:///?socket={tmp_path}/nobody"
    with graduate(tmp_path, nowhere) as server:
        assert server.process.wait(20) == 1
        assert "can't be connected to" in server.log.read_text()


@pytest.mark.parametrize("rate", ["1M", "none"], ids=["proxy", "graduated"])
def test_no_server_outlives_its_supervisor(tmp_path: Path, rate: str) -> None:
    with source(tmp_path) as origin, graduate(tmp_path, origin.uri, "--rate", rate) as server:
        server.await_state(graduated=rate == "none", state="active" if rate == "1M" else "complete")
        handle = server.connect()
        child = server.server_pid()
        server.process.kill()
        server.process.wait()
        wait_for(lambda: not _runs(child), "the server's end")
        with pytest.raises(nbd.Error):
            handle.pread(BLOCK, 0)
    with graduate(tmp_path, origin.uri) as again:  # the address and the lock are free
        if rate == "none":
            again.await_state(graduated=True)


def test_nobody_else_opens_a_graduated_store_that_is_served(tmp_path: Path) -> None:
    with source(tmp_path) as origin, graduate(tmp_path, origin.uri) as server:
        server.await_state(graduated=True)
        command = [sys.executable, "-m", "relocator.cli.main", "proxy", str(tmp_path / "store")]
        done = subprocess.run(
            [*command, "--socket", str(tmp_path / "other.sock")],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, "is in use by another process" in done.stderr) == (1, True)
        writes = ["qemu-io", "-f", "raw", "-c", "write 0 4k", str(tmp_path / "store" / "disk.img")]
        done = subprocess.run(writes, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, 'Failed to get "write" lock' in done.stderr) == (1, True)


def test_what_was_written_after_it_counts_as_anything_and_returns(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for directory in (a, b):
        directory.mkdir()
    (a / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    home = (f"disk={a / 'disk.img'}", f"store={a / 'maps'}")
    model = source_bytes(SIZE_BYTES)
    with plugin(a, "target", *home) as target, graduate(b, target.uri) as server:
        server.await_state(graduated=True)
        handle = server.connect()
        handle.pwrite(b"after graduation", 5000)
        handle.shutdown()
        model[5000:5016] = b"after graduation"
    with plugin(b, "away", f"store={b / 'store'}") as away:
        status = away.status()
        assert (status["dirty_blocks"], status["graduated"]) == (SIZE_BYTES // BLOCK, False)
        with plugin(a, "home", *home, f"source={away.uri}") as back:
            back.wait()
            assert back.connect().pread(SIZE_BYTES, 0) == model
    assert (a / "disk.img").read_bytes() == model


def test_a_disk_that_has_moved_on_does_not_graduate(tmp_path: Path) -> None:
    b, c = tmp_path / "b", tmp_path / "c"
    for directory in (b, c):
        directory.mkdir()
    with source(tmp_path) as origin, graduate(b, origin.uri, "--rate", "20M") as server:
        server.await_state(state="active")
        uri = f"nbd+unix:///?socket={server.socket}"
        with plugin(c, "next", f"store={c / 'store'}", f"source={uri}") as onward:
            onward.wait()
            assert server.await_state(state="sealed")["graduated"] is False
            assert onward.connect().pread(SIZE_BYTES, 0) == source_bytes(SIZE_BYTES)


def test_a_service_manager_is_told_that_a_complete_disk_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain server tells nobody: a unit that was started again would be ended as too late."""
    with source(tmp_path) as server:
        with graduate(tmp_path, server.uri) as found:
            found.await_state(graduated=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with graduate(tmp_path) as again:
            assert manager.recv(100) == b"READY=1"
            assert again.connect().pread(BLOCK, 0) == source_bytes(SIZE_BYTES)[:BLOCK]


def test_a_disk_that_can_not_graduate_yet_is_served_on_and_graduates_later(tmp_path: Path) -> None:
    with source(tmp_path) as server:
        arguments = (server.uri,)
        with graduate(tmp_path, *arguments, main=("-c", FAILS_ONCE)) as found:
            found.await_state(graduated=True)
            guest = found.connect()
            assert guest.pread(SIZE_BYTES // 2, 0) == source_bytes(SIZE_BYTES)[: SIZE_BYTES // 2]
    log = (tmp_path / "g.log").read_text()
    assert log.count("can't graduate: disk=IMAGE: is in use by another process") == 1, log


def test_where_the_path_of_its_socket_is_as_long_as_may_be_a_disk_graduates() -> None:
    """Linux allows 107 bytes, and the next server's socket is made beside it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        directory = Path(root) / ("d" * (107 - len(f"{root}//g.control")))
        directory.mkdir()
        with source(Path(root)) as server:
            with graduate(directory, server.uri) as found:
                found.await_state(graduated=True)
                assert found.connect().pread(BLOCK, 0) == source_bytes(SIZE_BYTES)[:BLOCK]


def test_a_guard_that_comes_too_late_still_kills_the_server() -> None:
    """The supervisor has ended, and its process id is nobody's."""
    supervisor = subprocess.Popen(["true"])
    supervisor.wait()
    code = "import sys; from relocator.cli.graduate import _guard; _guard(*map(int, sys.argv[1:]))"
    with subprocess.Popen(["sleep", "60"]) as server:
        try:
            guard = [sys.executable, "-c", code, str(server.pid), str(supervisor.pid)]
            subprocess.run(guard, capture_output=True, check=False)
            wait_for(lambda: server.poll() == -signal.SIGKILL, "the server's end", 10)
        finally:
            server.kill()
