"""Disks served to iSCSI initiators by `relocator iscsi`, and a LUN as the source of a proxy."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relocator.errors import RelocatorError
from relocator.iscsi.lun import Lun
from relocator.iscsi.tgt import served as tgt_served
from tests.support.iscsi import (
    NAME,
    Portal,
    asked,
    initiator,
    portal,
    qemu_io,
    tgt,
)
from tests.support.model import source_bytes
from tests.support.servers import nbdkit, plugin, refused, wait_for
from tests.support.sources import SIZE_BYTES, free_port, image

MIB = 1 << 20


def disk_by(lun: str, directory: Path) -> bytes:
    """All of a LUN, read by an initiator."""
    copy = directory / "read-back.img"
    initiator("qemu-img", "convert", "-f", "raw", "-O", "raw", lun, str(copy))
    return copy.read_bytes()


def test_an_initiator_reads_and_writes_a_disk_that_is_still_on_its_way(tmp_path: Path) -> None:
    disk = image(tmp_path)
    model = source_bytes(SIZE_BYTES)
    with plugin(tmp_path, "target", f"disk={disk}") as target:
        store = tmp_path / "store"
        keys = (f"store={store}", f"source={target.uri}", "rate=4M", "window=128K")
        with plugin(tmp_path, "proxy", *keys) as proxy, portal(tmp_path, proxy.uri) as served:
            listed = initiator("iscsi-ls", "-s", served.address)
            assert f"Target:{NAME} Portal:127.0.0.1:{served.port}" in listed
            assert "Lun:1    Type:DIRECT_ACCESS" in listed
            qemu_io(served.disk, "write -P 0x41 1M 12288", "write -P 0x42 512 512", "flush")
            model[MIB : MIB + 12288] = b"\x41" * 12288
            model[512:1024] = b"\x42" * 512
            assert proxy.control.call("status")["state"] == "active"
            proxy.hurry()
            assert disk_by(served.disk, tmp_path) == model
            proxy.control.call("wait", timeout_s=60)
            assert disk_by(served.disk, tmp_path) == model
    assert (store / "disk.img").read_bytes() == model


def test_what_was_read_in_standby_is_read_anew_after_the_switch(tmp_path: Path) -> None:
    disk = image(tmp_path)
    keys = (f"store={tmp_path / 'store'}", "mode=standby", "background=off")
    with plugin(tmp_path, "target", f"disk={disk}") as target:
        with plugin(tmp_path, "proxy", *keys, f"source={target.uri}") as proxy:
            with portal(tmp_path, proxy.uri) as served:
                before = disk_by(served.disk, tmp_path)
                target.connect().pwrite(b"\x43" * 65536, 65536)
                proxy.control.call("activate")
                qemu_io(served.disk, "read -P 0x43 64k 64k", "write -P 0x44 0 4096", "flush")
                after = disk_by(served.disk, tmp_path)
    assert before == source_bytes(SIZE_BYTES)
    assert after == b"\x44" * 4096 + before[4096:65536] + b"\x43" * 65536 + before[131072:]


def test_a_flush_by_an_initiator_reaches_the_server(tmp_path: Path) -> None:
    arguments = ["-v", "file", str(image(tmp_path))]
    with nbdkit(tmp_path, "plain", arguments) as server, portal(tmp_path, server.uri) as served:

        def flushes() -> int:
            return server.log.read_text().count("debug: file: flush")

        qemu_io(served.disk, "write -P 1 0 4096")  # which ends with a flush, as any close does
        before = flushes()
        qemu_io(served.disk, "write -P 2 0 4096", "flush")
        assert flushes() > before > 0


def test_a_server_that_is_killed_and_comes_back_costs_no_error(tmp_path: Path) -> None:
    disk = image(tmp_path)
    said: list[str] = []
    keys = (f"disk={disk}", f"store={tmp_path / 'maps'}")
    with plugin(tmp_path, "target", *keys) as target, portal(tmp_path, target.uri) as served:
        qemu_io(served.disk, "write -P 0x51 0 64k")
        target.kill()
        steps = ("read -P 0x51 0 64k", "write -P 0x52 64k 64k", "flush", "read -P 0x52 64k 64k")
        late = threading.Thread(target=lambda: said.append(qemu_io(served.disk, *steps)))
        late.start()
        late.join(1.0)
        assert late.is_alive()
        with plugin(tmp_path, "target", *keys):
            late.join(60.0)
            assert said
            served.process.terminate()  # nbdkit ends when its clients have gone
            served.process.wait(30)
    data = disk.read_bytes()
    assert data[: 128 << 10] == b"\x51" * 65536 + b"\x52" * 65536


def test_it_ends_while_its_server_is_away(tmp_path: Path) -> None:
    with plugin(tmp_path, "target", f"disk={image(tmp_path)}") as target:
        with portal(tmp_path, target.uri) as served:
            reads = [word for _ in range(60) for word in ("-c", "read 0 4096", "-c", "sleep 1000")]
            reader = ["stdbuf", "-oL", "qemu-io", "-f", "raw", served.disk, *reads]
            waiting = subprocess.Popen(reader, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            assert waiting.stdout is not None
            assert b"4096" in waiting.stdout.readline()  # it is connected, and reads each second
            target.kill()
            served.process.terminate()
            assert served.process.wait(30) == 0
            assert served.leftovers() == []
            assert waiting.poll() is None  # an initiator that hopes, and was told of no error
            waiting.kill()
            waiting.communicate()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_of_it_is_left_however_it_ends(tmp_path: Path, how: signal.Signals) -> None:
    with plugin(tmp_path, "target", f"disk={image(tmp_path)}") as target:
        served = Portal(tmp_path, target.uri)
        try:
            served.await_ready()
            assert len(served.started()) >= 3  # tgtd, nbdfuse, qemu-nbd
            hanging = subprocess.Popen(
                ["stdbuf", "-oL", "qemu-io", "-f", "raw", served.disk]
                + ["-c", "read 0 4096", "-c", "sleep 60000"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            assert hanging.stdout is not None
            hanging.stdout.readline()  # it has a session, which must not hold anything up
            served.process.send_signal(how)
            assert served.process.wait(30) == (-9 if how == signal.SIGKILL else 0)
            wait_for(lambda: served.leftovers() == [], f"the end of {served.leftovers()}")
            if how != signal.SIGKILL:
                assert list(served.files.iterdir()) == []
        finally:
            served.process.kill()
            served.process.wait()
            hanging.kill()
            hanging.communicate()
        with portal(tmp_path, target.uri) as again:
            qemu_io(again.disk, "read 0 4096")


def test_it_ends_with_an_error_when_what_it_runs_on_ends(tmp_path: Path) -> None:
    with plugin(tmp_path, "target", f"disk={image(tmp_path)}") as target:
        with portal(tmp_path, target.uri) as served:
            (tgtd,) = (pid for pid in served.started() if comm(pid) == "tgtd")
            os.kill(tgtd, signal.SIGKILL)
            assert served.process.wait(30) == 1
            assert "relocator: tgtd ended" in served.log.read_text()
            assert served.leftovers() == []


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""  # it has gone


def test_initiators_must_know_the_password_and_come_from_where_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _watch_tgtadm(tmp_path, monkeypatch)
    secret = tmp_path / "chap"
    secret.write_text("alice:open-sesame-1\n")
    with plugin(tmp_path, "target", f"disk={image(tmp_path)}") as target:
        with portal(tmp_path, target.uri, "--chap", str(secret)) as served:
            assert asked("iscsi-inq", served.disk).returncode != 0
            known = served.disk.replace("iscsi://", "iscsi://alice%open-sesame-1@")
            assert "VENDOR:RLOCATOR" in initiator("iscsi-inq", known).replace(" ", "").upper()
        said = (tmp_path / "tgtadm.log").read_text()
        assert "--user alice" in said
        assert "open-sesame" not in said
        with portal(tmp_path, target.uri, "--allow", "192.0.2.7") as served:
            assert asked("iscsi-inq", served.disk).returncode != 0


def _watch_tgtadm(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every tgtadm's arguments written to tgtadm.log."""
    first = directory / "bin"
    first.mkdir()
    script = first / "tgtadm"
    real = shutil.which("tgtadm")
    script.write_text(f'#!/bin/sh\necho "$@" >>{directory}/tgtadm.log\nexec {real} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{first}:{os.environ['PATH']}")


def test_two_disks_differ_in_identity_and_one_keeps_its_own(tmp_path: Path) -> None:
    """An initiator would take equal ones for two paths to one disk."""
    other = ("--name", "iqn.2024-01.org.example:other")
    serials = []
    with plugin(tmp_path, "target", f"disk={image(tmp_path)}") as target:
        for options in ((), other, ()):
            with portal(tmp_path, target.uri, *options) as served:
                disk = served.disk.replace(NAME, other[1]) if options else served.disk
                serials.append(initiator("iscsi-inq", "-e", "1", "-c", "128", disk))
    assert serials[0] == serials[2] != serials[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nbds://h", "--name", NAME], "DISK=nbds://h: not an NBD server nearby"),
        (["nbd+unix:///?socket=x", "--name", NAME], "DISK=nbd+unix:///?socket=x: not"),
        (["nbd://h", "--name", "disk"], "--name=disk: not an iSCSI name"),
        (["nbd://h", "--name", NAME, "--listen", "3260"], "--listen=3260: not HOST:PORT"),
        (["nbd://h", "--name", NAME, "--listen", ":3260"], "a portal has an address, such as 0.0"),
        (["nbd://h", "--name", NAME, "--chap", "/nowhere"], "--chap=/nowhere: can't be read"),
        (["nbd://h", "--name", NAME, "--patience", "x"], "--patience=x: not a time"),
        (["nbd://h", "--name", NAME, "--chap", "/etc/hostname"], "must be USER:PASSWORD"),
    ],
)
def test_wrong_parameters_of_iscsi_are_named(arguments: list[str], complaint: str) -> None:
    done = asked("relocator", "iscsi", *arguments)
    assert (done.returncode, complaint in done.stdout) == (2, True), done.stdout
    assert done.stdout.count("\n") == 1


def test_a_server_that_is_not_there_is_an_error_soon_whatever_the_patience() -> None:
    nobody = f"nbd://127.0.0.1:{free_port()}"
    begun = time.monotonic()
    done = asked("relocator", "iscsi", nobody, "--name", NAME, *_listen(free_port()))
    assert done.returncode == 1
    assert done.stdout.startswith(f"relocator: DISK={nobody}: can't be opened: ")
    assert done.stdout.endswith(": Connection refused\n")
    assert time.monotonic() - begun < 15


def test_nothing_is_left_of_one_that_ends_while_it_waits_for_its_server(tmp_path: Path) -> None:
    waiting = Portal(tmp_path, f"nbd://127.0.0.1:{free_port()}")
    try:
        wait_for(lambda: "qemu-nbd" in map(comm, waiting.started()), "qemu-nbd")
        time.sleep(1.0)  # it tries to connect, and puts a SIGTERM off
        waiting.process.terminate()
        assert waiting.process.wait(30) == 0
        wait_for(lambda: not any(map(running, waiting.started())), "the end of all", 3)
        assert list(waiting.files.iterdir()) == []
    finally:
        waiting.process.kill()
        waiting.process.wait()


def _listen(port: int, host: str = "127.0.0.1") -> tuple[str, str]:
    return "--listen", f"{host}:{port}"


def test_a_portal_that_somebody_has_is_refused(tmp_path: Path) -> None:
    with plugin(tmp_path, "target", f"disk={image(tmp_path)}") as target, _taken() as port:
        for host in ("0.0.0.0", "127.0.0.1"):
            done = asked("relocator", "iscsi", target.uri, "--name", NAME, *_listen(port, host))
            assert done.returncode == 1
            what = (
                f"relocator: --listen={host}:{port}: can't be listened on: Address already in use"
            )
            assert done.stdout.startswith(what)


@contextmanager
def _taken() -> Iterator[int]:
    """A port at which somebody listens, at every address of IPv4."""
    with socket.create_server(("0.0.0.0", 0)) as somebody:
        yield int(somebody.getsockname()[1])


def test_a_portal_that_is_lost_to_somebody_at_the_last_moment_is_not_served(tmp_path: Path) -> None:
    """Where tgtd can't have what it is asked to, it listens elsewhere, and goes on."""
    with plugin(tmp_path, "target", f"disk={image(tmp_path)}") as target, _taken() as port:
        lun = Lun(target.uri, NAME, "127.0.0.1", port)
        with pytest.raises(RelocatorError, match=f"127.0.0.1:{port}: can't be listened on"):
            with tgt_served(lun):
                pass


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_only_the_portal_that_was_asked_for_is_opened(tmp_path: Path, host: str) -> None:
    """The other family's port is somebody else's, and stays so."""
    family = socket.AF_INET if host == "[::]" else socket.AF_INET6
    address = ("0.0.0.0" if host == "[::]" else "::", 0)
    with (
        plugin(tmp_path, "target", f"disk={image(tmp_path)}") as target,
        socket.create_server(address, family=family) as other,
    ):
        with portal(tmp_path, target.uri, *_listen(other.getsockname()[1], host)):
            pass


def test_a_lun_is_a_source_like_any_other(tmp_path: Path) -> None:
    disk, store = image(tmp_path), tmp_path / "store"
    model = source_bytes(SIZE_BYTES)
    with tgt(tmp_path, disk) as source:
        keys = (f"store={store}", f"source={source.uri}", "rate=8M", "window=128K")
        with plugin(tmp_path, "proxy", *keys) as proxy:
            guest = proxy.connect()
            far = SIZE_BYTES - 8192
            assert guest.pread(4096, far) == model[far : far + 4096]
            guest.pwrite(b"here" * 1024, 4096)
            model[4096:8192] = b"here" * 1024
            source.kill()
            wait_for(lambda: not proxy.control.call("status")["source_connected"], "the end", 60)
            source.start()
            proxy.hurry()
            proxy.control.call("wait", timeout_s=60)
            assert guest.pread(SIZE_BYTES, 0) == model
    assert (store / "disk.img").read_bytes() == model
    assert disk.read_bytes() == source_bytes(SIZE_BYTES)


def test_the_processes_that_reach_a_lun_go_with_the_proxy(tmp_path: Path) -> None:
    with tgt(tmp_path, image(tmp_path)) as source:
        keys = (f"store={tmp_path / 'store'}", f"source={source.uri}", "background=off")
        with plugin(tmp_path, "proxy", *keys) as proxy:
            ours = [pid for pid in pids_of("qemu-nbd") if source.uri in cmdline(pid)]
            assert ours
            proxy.kill()
            wait_for(lambda: not [pid for pid in ours if running(pid)], "the end of qemu-nbd")


def test_a_lun_s_password_is_in_no_process_s_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "open-sesame-1"
    with tgt(tmp_path, image(tmp_path)) as source:
        source.wants("alice", password)
        uri = source.uri.replace("iscsi://", "iscsi://alice@")
        keys = (f"store={tmp_path / 'store'}", f"source={uri}")
        monkeypatch.setenv("LIBISCSI_CHAP_PASSWORD", "not-the-right-1")
        assert "Failed to connect to LUN" in refused(*keys)
        monkeypatch.setenv("LIBISCSI_CHAP_PASSWORD", password)
        with plugin(tmp_path, "proxy", *keys) as proxy:
            shown = [cmdline(int(one.name)) for one in Path("/proc").glob("[0-9]*")]
            assert any(uri in one for one in shown)
            assert not [one for one in shown if password in one]
            assert password not in str(proxy.wait())
            assert proxy.connect().pread(SIZE_BYTES, 0) == source_bytes(SIZE_BYTES)


def pids_of(name: str) -> list[int]:
    found = (int(one.name) for one in Path("/proc").glob("[0-9]*"))
    return [pid for pid in found if running(pid) and comm(pid) == name]


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""  # it has gone


def running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("iscsi://127.0.0.1/iqn.x", "names no LUN; write iscsi://HOST[:PORT]/IQN/LUN"),
        ("iscsi://127.0.0.1:99999/iqn.x/1", "its port is not a number"),
        ("iscsi://u%se@cret@127.0.0.1/iqn.x/1", "source=iscsi://u%...@127.0.0.1/iqn.x/1: holds a"),
    ],
)
def test_a_uri_that_names_no_lun_is_refused(tmp_path: Path, source: str, complaint: str) -> None:
    assert complaint in refused(f"store={tmp_path / 'store'}", f"source={source}")


def test_a_lun_that_is_not_there_is_named_with_the_reason(tmp_path: Path) -> None:
    with tgt(tmp_path, image(tmp_path)) as source:
        wrong = source.uri.replace(NAME, "iqn.2024-01.org.example:none")
        said = refused(f"store={tmp_path / 'store'}", f"source={wrong}")
        assert wrong in said
        assert "iSCSI: Failed to connect to LUN" in said
    assert "iSCSI knows no TLS" in refused(f"store={tmp_path}", f"source={wrong}", "tls=on")
