"""The doors of a relocator: who has no key can't seal the disk, nor learn more than its blocks."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.cli.main import main
from relocator.errors import ConfigError, ShutOutError, UpstreamError
from relocator.source import key
from relocator.source.endpoint import Endpoint
from relocator.source.handles import connected, open_handle
from relocator.source.remote import Source
from tests.support.link import clocks
from tests.support.model import source_bytes
from tests.support.servers import PLUGIN, Server, plugin, refused, wait_for
from tests.support.sites import SIZE_BYTES as OF_SITES
from tests.support.sources import free_port

SIZE_BYTES = 2 << 20


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    assert main(["keygen", str(path)]) == 0
    return path


@contextmanager
def target(directory: Path, *keys: str) -> Iterator[Server]:
    (directory / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    wanted = (f"disk={directory / 'disk.img'}", f"store={directory / 'maps'}")
    with plugin(directory, "target", *wanted, *keys, flags=("-t", "1")) as server:
        yield server


def far_end(server: Server, path: Path | None = None) -> Source:
    """What another site calls the server by, with a key."""
    known = None if path is None else key.read("key", path)
    return Source(Endpoint(server.uri, key=known))


def test_a_stranger_gets_blocks_and_nothing_else(tmp_path: Path, secret: Path) -> None:
    with target(tmp_path, f"key={secret}") as server:
        stranger = far_end(server)
        for verb in ("identify", "epoch", "seal", f"seal/{'a' * 32}", "moved"):
            with pytest.raises(ShutOutError, match="it needs its key: give key=PATH"):
                stranger.call(verb)
        for name in ("recent", "heat", "dirty", "digest", "digests/4096", "control"):
            with pytest.raises(nbd.Error):
                server.connect(name)
        assert server.connect().pread(4096, 0) == source_bytes(SIZE_BYTES)[:4096]
        server.connect().pwrite(b"still writable", 0)
        assert server.status()["state"] == "complete"


def test_a_wrong_key_is_called_wrong(tmp_path: Path, secret: Path) -> None:
    key.make(tmp_path / "other")
    with target(tmp_path, f"key={secret}") as server:
        with pytest.raises(ShutOutError, match="the key is another one than its own"):
            far_end(server, tmp_path / "other").call("seal")
        assert server.status()["state"] == "complete"
        assert far_end(server, secret).call("identify")["seal"] is None


def test_a_disk_moves_with_the_key_and_a_proxy_without_it_does_not_start(
    tmp_path: Path, secret: Path
) -> None:
    with target(tmp_path, f"key={secret}") as server:
        keys = (f"store={tmp_path / 'store'}", f"source={server.uri}", "mode=standby")
        assert "it needs its key: give key=PATH" in refused(*keys)
        with plugin(tmp_path, "proxy", *keys, f"key={secret}") as proxy:
            server.connect().pwrite(b"written at home", 8192)
            proxy.control.call("activate", wait=True)
            proxy.connect().pwrite(b"mine", 0)
            proxy.wait()
            assert proxy.control.call("verify")["verified_blocks"] == SIZE_BYTES // 4096 - 1
            wait_for(lambda: server.control.call("identify")["moved"], "the source to be told")


def test_a_disk_that_has_moved_on_starts_again_though_its_source_has_another_key(
    sites: Any, tmp_path: Path, secret: Path
) -> None:
    a, b, c = sites
    key.make(tmp_path / "other")
    with ExitStack() as running:

        def first(of: Path) -> Server:
            keys = (f"disk={a.image}", f"store={a.maps}", f"key={of}")
            server: Server = running.enter_context(plugin(a.directory, "target", *keys))
            return server

        source, ours = first(secret), f"key={secret}"
        second = running.enter_context(b.proxy(source, ours))
        second.wait()
        third = running.enter_context(c.proxy(second, ours, "background=off", "readahead=0"))
        wait_for(lambda: second.control.call("identify")["moved"], "the second to be told")
        source.kill()
        second.kill()
        source = first(tmp_path / "other")
        second = running.enter_context(b.proxy(source, ours))
        (note,) = second.status()["notes"]
        assert "whether this disk has moved back" in note
        assert "the key is another one than its own" in note
        assert third.connect().pread(OF_SITES, 0) == source_bytes(OF_SITES)


def test_the_switch_asks_for_no_nonce_any_more(tmp_path: Path, secret: Path) -> None:
    """What was made ready in standby is proven already, and stays ready until more is."""
    with target(tmp_path, f"key={secret}") as server:
        source, token = far_end(server, secret), "a" * 32
        source.prepare(f"seal/{token}")
        source.endpoint = replace(source.endpoint, uri="nbd+unix:///?socket=/nowhere")
        with pytest.raises(UpstreamError):
            source.prepare(f"seal/{token}/4096/0/2", f"seal/{token}/4096/1/2")
        assert source.call(f"seal/{token}")["seal"] == token


def test_what_was_heard_can_not_be_said_again(tmp_path: Path, secret: Path) -> None:
    with target(tmp_path, f"key={secret}") as server:
        known = key.read("key", secret)
        lock = key.Lock(known)
        name = known.prove(lock.describe(), "control/seal")
        assert lock.opens(name) == ("control/seal", True)
        assert lock.opens(name) == ("control/seal", False)
        assert lock.opens(name.replace("seal", "moved")) == ("control/moved", False)
        assert key.Lock(known).opens(known.prove(lock.describe(), "x")) == ("x", False)
        handle = open_handle(far_end(server, secret).endpoint.with_export("control/identify"))
        with pytest.raises(ShutOutError):
            heard = Endpoint(server.uri).with_export(handle.get_export_name())
            Source(replace(heard, further=False))._ask("identify", _reading(heard), 0)
        handle.shutdown()


def _reading(endpoint: Endpoint) -> Any:
    from relocator.source.incoming import Incoming

    return Incoming(open_handle(endpoint))


def test_a_nonce_grows_old(tmp_path: Path, secret: Path) -> None:
    known, now_s = key.read("key", secret), [100.0]
    lock = key.Lock(known, lambda: now_s[0])
    name = known.prove(lock.describe(), "x")
    now_s[0] += key.NONCE_S + 1
    assert lock.opens(name) == ("x", False)
    assert lock.opens(known.prove(lock.describe(), "x")) == ("x", True)


@contextmanager
def listening(directory: Path, address: str, *keys: str) -> Iterator[tuple[str, Path]]:
    """A target on a TCP address; its URI and its log."""
    (directory / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    port, log = free_port(), directory / "log"
    argv = ["nbdkit", "-f", "-t", "1", "-i", address, "-p", str(port), "python", str(PLUGIN)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*argv, f"disk={directory / 'disk.img'}", *keys], stdout=output, stderr=output
        )
    endpoint = Endpoint(f"nbd://127.0.0.1:{port}")

    def answers() -> bool:
        try:
            with connected(endpoint):
                return True
        except UpstreamError:
            return False

    try:
        wait_for(answers, "the target")
        yield endpoint.uri, log
    finally:
        process.kill()
        process.wait()


def test_without_a_key_doors_are_shut_where_others_can_reach_them(
    tmp_path: Path, secret: Path
) -> None:
    with listening(tmp_path, "0.0.0.0") as (uri, log):
        with pytest.raises(ShutOutError, match=r"none is set there: other machines can reach"):
            Source(Endpoint(uri)).call("seal")
        with pytest.raises(ShutOutError):
            Source(Endpoint(uri, key=key.read("key", secret))).call("seal")
        assert "relocator keygen PATH" in log.read_text()
        assert "relocator keygen" in refused(f"store={tmp_path / 'store'}", f"source={uri}")
    with listening(tmp_path, "127.0.0.1") as (uri, log):
        assert Source(Endpoint(uri)).call("seal")["seal"]
        assert "key" not in log.read_text()
    with listening(tmp_path, "0.0.0.0", f"key={secret}") as (uri, log):
        assert Source(Endpoint(uri, key=key.read("key", secret))).call("seal")["seal"]
        assert "key" not in log.read_text()


@pytest.mark.parametrize("locked", [False, True], ids=("open", "key"))
def test_both_ends_of_an_idle_connection_ask_whether_the_other_is_there(
    tmp_path: Path, secret: Path, locked: bool
) -> None:
    with listening(tmp_path, "127.0.0.1", *([f"key={secret}"] if locked else [])) as (uri, _):
        port = uri.rpartition(":")[2]
        with connected(Endpoint(uri)):
            wait_for(lambda: clocks(port) == ["keepalive"] * 2, "that at both ends")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), "No such file or directory; make one with `relocator keygen"),
        (lambda path: path.chmod(0o640), "others may use it .mode 0640.; chmod 600"),
        (lambda path: path.write_text("short"), "5 bytes are too few"),
        (lambda path: os.chown(path, 12345, 0), "belongs to user 12345"),
    ],
    ids=("missing", "readable", "short", "another's"),
)
def test_a_key_that_is_none_is_refused(tmp_path: Path, secret: Path, spoil: Any, says: str) -> None:
    spoil(secret)
    with pytest.raises(ConfigError, match=says):
        key.read("key", secret)
    (tmp_path / "disk.img").write_bytes(bytes(4096))
    assert "key=" in refused(f"disk={tmp_path / 'disk.img'}", f"key={secret}")


def test_keygen_replaces_nothing(secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert secret.stat().st_mode & 0o777 == 0o600
    before = secret.read_bytes()
    assert main(["keygen", str(secret)]) == 2
    assert "exists" in capsys.readouterr().err
    assert secret.read_bytes() == before
