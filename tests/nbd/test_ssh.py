"""A source behind a real sshd of the test's own."""

import getpass
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nbd
import pytest

from testbed.hosts.ssh import keys, known, sshd_command
from tests.support.model import source_bytes
from tests.support.servers import children, nbdkit, plugin, refused, wait_for
from tests.support.sources import daemon

SIZE_BYTES = 4 << 20


@contextmanager
def behind_sshd(directory: Path) -> Iterator[tuple[str, ...]]:
    """A source on a Unix socket that is reached by ssh; the parameters of a proxy of it."""
    (directory / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    options = keys(directory)
    with (
        nbdkit(directory, "source", ["-t", "1", "file", str(directory / "disk.img")]) as source,
        daemon(directory, "sshd", partial(sshd_command, directory, "127.0.0.1")) as door,
    ):
        known(directory, "127.0.0.1", door.port)
        address = f"ssh://{getpass.getuser()}@127.0.0.1:{door.port}"
        uri = f"source={address}/?socket={source.socket}"
        yield f"store={directory / 'store'}", uri, f"ssh-options={options}"


def test_a_copy_through_ssh_survives_the_loss_of_its_connections(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    options = keys(tmp_path)
    disk = ["nbdkit", "-f", "-i", "127.0.0.1", "file", str(tmp_path / "disk.img")]
    with (
        daemon(tmp_path, "disk", lambda port: [*disk, "-p", str(port)]) as source,
        daemon(tmp_path, "sshd", partial(sshd_command, tmp_path, "127.0.0.1")) as door,
    ):
        uri = f"source=ssh://{getpass.getuser()}@127.0.0.1:{door.port}/?port={source.port}"
        store, flags = f"store={tmp_path / 'store'}", f"ssh-options={options}"
        (tmp_path / "known").write_text("")
        assert "Host key verification failed" in refused(store, uri, flags)
        known(tmp_path, "127.0.0.1", door.port)
        with plugin(tmp_path, "proxy", store, uri, flags, "rate=8M", "window=128K") as server:
            control = server.control
            wait_for(lambda: control.call("status")["source_connected"], "ssh")
            wait_for(lambda: len(children(server.process.pid)) == 2, "short questions to end")
            ours = children(server.process.pid)
            for pid in ours:
                subprocess.run(["kill", "-9", str(pid)], check=True)
            wait_for(lambda: not set(ours) & set(children(server.process.pid)), "their end")
            wait_for(lambda: control.call("status")["source_connected"], "ssh again")
            server.hurry()
            control.call("wait", timeout_s=60)
            assert not children(server.process.pid)
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_the_far_end_of_ssh_may_be_a_unix_socket(tmp_path: Path) -> None:
    with behind_sshd(tmp_path) as keys_of_proxy:
        with plugin(tmp_path, "proxy", *keys_of_proxy) as server:
            server.wait(120)
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_a_connection_that_lacks_room_here_is_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ssh complains of is kept in a file without a name."""
    with behind_sshd(tmp_path) as keys_of_proxy:
        room = tmp_path / "room"
        room.mkdir()
        monkeypatch.setenv("TMPDIR", str(room))
        slowly = ("rate=8M", "window=128K", "order=sequential", "retry-timeout=1")
        with plugin(tmp_path, "proxy", *keys_of_proxy, *slowly) as server:
            wait_for(lambda: server.status()["source_connected"], "ssh")
            room.rename(tmp_path / "away")
            for pid in children(server.process.pid):
                subprocess.run(["kill", "-9", str(pid)], check=True)
            with pytest.raises(nbd.Error, match="Input/output error"):
                server.connect().pread(4096, SIZE_BYTES - 4096)
            (tmp_path / "away").rename(room)
            server.hurry()
            server.wait(60)
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)
