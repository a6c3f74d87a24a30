"""The connections of a copy: all of them end with it, and none keeps what another can fetch."""

import signal
import threading
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from relocator.source.handles import hear_out
from tests.support.model import source_bytes
from tests.support.relay import relay
from tests.support.servers import (
    TARGET_FLAGS,
    Server,
    mistaken,
    nbdkit,
    plugin,
    proxy,
    target,
    wait_for,
)

SIZE_BYTES = 1 << 20
BLOCK = 4096
#: a source that is far away when it is asked who it is
_FAR = """
import time
from relocator.running.verbs import Verbs

_remote = Verbs.remote


def remote(self, verb, argument):
    if verb == "identify":
        time.sleep(0.7)
    return _remote(self, verb, argument)


Verbs.remote = remote
"""


def sockets(server: Server) -> int:
    """How many sockets a server has: to listen, and its clients'."""
    found = 0
    for file in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with suppress(OSError):  # it was closed meanwhile
            found += str(file.readlink()).startswith("socket:")
    return found


def test_connections_that_are_opened_while_all_are_closed_end_too(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    keys = ("background=off", "connections=5")
    last = SIZE_BYTES - BLOCK
    far = mistaken(tmp_path, _FAR)
    with plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}", file=far) as source:
        alone = sockets(source)
        with proxy(tmp_path, source, *keys) as server:
            server.connect().pread(last, 0)
            server.kill()
        (tmp_path / "proxy.control").unlink()
        with proxy(tmp_path, source, *keys) as server:
            server.connect().pwrite(b"z" * BLOCK, last)  # before it knows whom it is connected to
            assert server.wait()["state"] == "complete"
            wait_for(lambda: sockets(source) <= alone, "the end of all connections")
            assert source.end(20) == 0, "nothing holds the source's server back"


@pytest.mark.parametrize("slow", [("delay", "rdelay=100ms"), ("rate", "rate=20M")])
def test_a_proxy_that_is_ended_in_mid_copy_takes_what_it_is_owed(
    tmp_path: Path, slow: tuple[str, str]
) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(62 << 20))
    behind = [f"--filter={slow[0]}", "file", str(tmp_path / "disk.img"), slow[1]]
    with nbdkit(tmp_path, "source", behind) as source:
        for number in range(3):
            store = tmp_path / f"store{number}"
            keys = (f"store={store}", f"source={source.uri}", "window=2M", "connections=4")
            with plugin(tmp_path, "proxy", *keys) as server:
                wait_for(lambda: server.status()["in_flight_bytes"] >= 1 << 20, "a full window")
                wait_for(lambda: sockets(source) == 5, "an end of the look at the file systems")
                assert server.status()["in_flight_bytes"]
                server.handles.clear()
                assert server.end(20) == 0
        said = source.log.read_text()
    assert "Broken pipe" not in said and "reset" not in said


@pytest.mark.parametrize("demand", ["own", "shared"])
def test_what_one_connection_owed_comes_by_the_others_if_it_can_not_come_back(
    tmp_path: Path, demand: str
) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(2 << 20))
    delay = ["--filter=delay", "file", str(tmp_path / "disk.img"), "rdelay=20ms"]
    slow = [*TARGET_FLAGS, *delay]
    keys = ("connections=4", "window=1M", f"demand={demand}", "background=off")
    with (
        nbdkit(tmp_path, "source", slow) as source,
        relay(tmp_path / "link", source.socket) as link,
        proxy(tmp_path, link.uri, *keys) as server,
    ):
        wait_for(lambda: server.status()["source_connections"] == 4, "all connections")
        wait_for(lambda: server.status()["notes"], "an end of the look at the file systems")
        wait_for(lambda: sockets(source) == 5, "no other")
        last = link.newest
        server.control.call("set", background="on")
        wait_for(lambda: server.status()["in_flight_bytes"] >= 1 << 19, "a full window")
        link.sever(last)
        wait_for(lambda: server.status()["source_connections"] == 3, "one connection less")
        server.wait()
        assert server.status()["faults"]["copy"] is None
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(2 << 20)


def test_who_is_owed_nothing_waits_for_nobody_at_a_goodbye(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "source", ["memory", "1M"]) as source:
        handle = source.connect()
        handle.pread(BLOCK, 0)
        source.process.send_signal(signal.SIGSTOP)
        with patch("relocator.source.handles.FAREWELL_S", 120.0):
            leaving = threading.Thread(target=hear_out, args=(handle,), daemon=True)
            leaving.start()
            leaving.join(20)
        source.process.send_signal(signal.SIGCONT)
        assert not leaving.is_alive()


def test_a_source_that_allows_few_connections_is_sealed_all_the_same(tmp_path: Path) -> None:
    flags = (*TARGET_FLAGS, "--filter=limit")
    with target(tmp_path, SIZE_BYTES, "limit=3", flags=flags) as source:
        wanted = ("mode=standby", "connections=2", "retry-timeout=8")
        with proxy(tmp_path, source, *wanted) as server:
            server.control.call("activate", wait=True)
            server.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)
