"""A store whose file system is full: that is told, nothing ends, and what had to wait is done."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.errors import RelocatorError
from tests.support import servers as support
from tests.support.model import source_bytes
from tests.support.room import Room
from tests.support.servers import Server, plugin, target, wait_for
from tests.support.storage_daemon import storage_daemon

SIZE_BYTES = 4 << 20
BLOCK = 4096
FULL = "No space left"
PATIENT = "retry-timeout=60"


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "room")


def proxy(tmp_path: Path, room: Room, uri: str, *keys: str) -> Any:
    wanted = (f"store={room.path / 'store'}", f"source={uri}")
    if not any(key.startswith("retry-timeout=") for key in keys):
        keys = (*keys, "retry-timeout=3")
    return plugin(tmp_path, "proxy", *wanted, *keys, within=room.within)


def source(tmp_path: Path, *keys: str, **more: Any) -> Any:
    """A target of the disk as it is: it was made before, and perhaps written."""
    return plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}", *keys, **more)


def again(running: ExitStack, tmp_path: Path, *keys: str) -> Server:
    """Another such, killed at the end: it would wait for its clients."""
    server: Server = running.enter_context(source(tmp_path, *keys))
    running.callback(server.kill)
    return server


def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(source_bytes(SIZE_BYTES))
    return path


def error(server: Server) -> str:
    return str(server.status()["error"])


def says(server: Server, what: str) -> None:
    """Wait until it says that; it must not have ended meanwhile."""
    wait_for(lambda: what in error(server), f"the word '{what}'")
    assert server.process.poll() is None, server.log.read_text()


def meta(room: Room, server: Server) -> dict[str, Any]:
    """What the store in `room` knows of itself."""
    found = json.loads((room.seen_from(server) / "store" / "meta.json").read_text())
    assert isinstance(found, dict)
    return found


def writable(server: Server) -> bool:
    guest = server.connect()
    try:
        guest.pwrite(guest.pread(512, 0), 0)
    except nbd.Error:
        return False
    return True


def test_rounds_go_on_once_there_is_room(tmp_path: Path, room: Room) -> None:
    with target(tmp_path, SIZE_BYTES) as at_source:
        with proxy(tmp_path, room, at_source.uri, "mode=standby", "refresh=0.2") as server:
            wait_for(lambda: server.status()["rounds"] > 1, "the copy ahead")
            room.fill(server)
            guest = at_source.connect()
            guest.pwrite(b"1" * BLOCK, 0)
            says(server, f"not kept in step: store={room.path}/store: meta.json can't be replaced")
            assert FULL in error(server)
            guest.pwrite(b"2" * BLOCK, 0)
            guest.pwrite(b"3" * BLOCK, 9 * BLOCK)
            with pytest.raises(RelocatorError, match=FULL):
                server.control.call("refresh")
            room.free(server)
            says(server, "None")
            guest.pwrite(b"4" * BLOCK, 7 * BLOCK)
            before = server.status()["rounds"]
            wait_for(lambda: server.status()["rounds"] > before + 2, "to be in step again")
            assert server.control.call("activate", wait=True)["dropped_blocks"] <= 1
            server.wait()
            expected = source_bytes(SIZE_BYTES)
            for block, text in ((0, b"2"), (9, b"3"), (7, b"4")):
                expected[block * BLOCK : (block + 1) * BLOCK] = text * BLOCK
            assert (room.seen_from(server) / "store" / "disk.img").read_bytes() == expected
            assert server.connect().pread(SIZE_BYTES, 0) == expected


def test_a_write_that_failed_counts_as_written_and_withdraw_says_so(
    tmp_path: Path, room: Room
) -> None:
    with target(tmp_path, SIZE_BYTES) as at_source:
        keys = ("mode=standby", "background=off")
        with proxy(tmp_path, room, at_source.uri, *keys) as server:
            server.control.call("activate", wait=True)
            room.fill(server)
            with pytest.raises(nbd.Error, match="ENOSPC"):
                server.connect().pwrite(b"1" * BLOCK, 0)
            told = "1 blocks were written here \\(a write that failed counts, too\\)"
            with pytest.raises(RelocatorError, match=told):
                server.control.call("withdraw")


def test_so_do_rounds_by_a_bitmap_and_nothing_is_copied_that_only_it_would_know(
    tmp_path: Path, room: Room
) -> None:
    with storage_daemon(tmp_path, image(tmp_path)) as qemu:
        qemu.record("b0")
        qemu.offer("b0")
        guest, total = qemu.guest(), SIZE_BYTES // BLOCK
        guest.pwrite(b"0" * BLOCK, 5 * BLOCK)
        keys = ("mode=standby", "refresh=0.2", "source-bitmap=b0", "background=off")
        with proxy(tmp_path, room, qemu.uri, *keys) as server:
            server.control.call("set", background="on")
            wait_for(lambda: server.status()["present_blocks"] == total - 1, "the copy ahead")
            room.fill(server)
            qemu.hide()
            qemu.clear("b0")
            guest.pwrite(b"1" * BLOCK, 0)
            qemu.offer("b0")
            says(server, "bitmap can't be replaced")
            assert server.status()["present_blocks"] == 0
            room.free(server)
            says(server, "None")
            guest.pwrite(b"2" * BLOCK, 9 * BLOCK)
            wait_for(lambda: server.status()["present_blocks"] == total - 2, "a round")
            guest.shutdown()
            server.control.call("activate", wait=True)
            expected = source_bytes(SIZE_BYTES)
            for block, text in ((5, b"0"), (0, b"1"), (9, b"2")):
                expected[block * BLOCK : (block + 1) * BLOCK] = text * BLOCK
            assert server.connect().pread(SIZE_BYTES, 0) == expected


def test_a_source_that_forgot_its_seal_is_read_once_its_new_name_is_noted(
    tmp_path: Path, room: Room
) -> None:
    image(tmp_path)
    with ExitStack() as running:
        first = running.enter_context(source(tmp_path))
        keys = ("background=off", "readahead=0", "retry-timeout=1")
        server = running.enter_context(proxy(tmp_path, room, first.uri, *keys))
        guest, expected = server.connect(), source_bytes(SIZE_BYTES)
        assert guest.pread(BLOCK, 0) == expected[:BLOCK]
        guest.pwrite(b"1" * BLOCK, BLOCK)
        wait_for(lambda: meta(room, server)["origin_samples"], "the source to be known")
        room.fill(server)
        first.kill()
        second = again(running, tmp_path)
        says(server, "meta.json can't be replaced")
        assert guest.pread(2 * BLOCK, 0) == expected[:BLOCK] + b"1" * BLOCK
        with pytest.raises(nbd.Error):
            guest.pread(BLOCK, 9 * BLOCK)
        room.free(server)
        says(server, "None")
        assert guest.pread(BLOCK, 9 * BLOCK) == expected[9 * BLOCK : 10 * BLOCK]
        assert meta(room, server)["origin_id"] == second.status()["id"]
        assert second.control.call("identify")["moved"]


def test_what_was_written_before_it_was_sealed_again_is_never_read(
    tmp_path: Path, room: Room
) -> None:
    image(tmp_path)
    with ExitStack() as running:
        first = running.enter_context(source(tmp_path))
        keys = ("background=off", "readahead=0", "retry-timeout=1")
        server = running.enter_context(proxy(tmp_path, room, first.uri, *keys))
        guest = server.connect()
        guest.pread(BLOCK, 0)
        wait_for(lambda: first.status()["state"] == "sealed", "the seal")
        server.process.send_signal(signal.SIGSTOP)
        first.kill()
        second = again(running, tmp_path)
        second.connect().pwrite(b"1" * BLOCK, 9 * BLOCK)
        server.process.send_signal(signal.SIGCONT)
        says(server, "written after the disk had moved")
        with pytest.raises(nbd.Error):
            guest.pread(BLOCK, 9 * BLOCK)  # it was sealed at the first of several attempts
        assert "written after the disk had moved" in error(server)


def standing_by(tmp_path: Path, room: Room, uri: str, *keys: str) -> Any:
    return proxy(tmp_path, room, uri, "mode=standby", "refresh=0.2", *keys)


def in_step(running: ExitStack, tmp_path: Path, room: Room, *keys: str) -> tuple[Server, Server]:
    """A source, and a proxy that stands by and has copied ahead."""
    image(tmp_path)
    first = running.enter_context(source(tmp_path, f"store={tmp_path / 'maps'}"))
    server = running.enter_context(standing_by(tmp_path, room, first.uri, *keys))
    wait_for(lambda: server.status()["rounds"], "the copy ahead")
    return first, server


def test_the_source_is_told_that_the_disk_moved_though_that_can_t_be_noted(
    tmp_path: Path, room: Room
) -> None:
    with ExitStack() as running:
        first, server = in_step(running, tmp_path, room)
        server.control.call("activate", hold=True, wait=True)
        first.kill()
        server.control.call("release")
        wait_for(lambda: server.status()["state"] in ("active", "complete"), "the switch")
        room.fill(server)
        second = again(running, tmp_path, f"store={tmp_path / 'maps'}")
        says(server, f"can't be noted: store={room.path}/store: meta.json can't be replaced")
        assert second.control.call("identify")["moved"]
        assert meta(room, server)["untold"]
        room.free(server)
        says(server, "None")
        assert not meta(room, server)["untold"]


def test_a_disk_that_is_given_back_is_and_rounds_go_on_once_that_is_noted(
    tmp_path: Path, room: Room
) -> None:
    with ExitStack() as running:
        first, server = in_step(running, tmp_path, room)
        server.control.call("activate", hold=True, wait=True)
        first.kill()
        with pytest.raises(RelocatorError, match="withdrawn here"):
            server.control.call("withdraw")
        room.fill(server)
        second = again(running, tmp_path, f"store={tmp_path / 'maps'}")
        says(server, "withdrawn; that can't be noted: store=")
        assert writable(second)
        room.free(server)
        wait_for(lambda: meta(room, server)["takeover"] is None, "the word to be noted")
        says(server, "None")
        before = server.status()["rounds"]
        wait_for(lambda: server.status()["rounds"] > before + 1, "rounds")


def test_an_activation_that_can_t_be_noted_is_undone_once_that_can(
    tmp_path: Path, room: Room
) -> None:
    with ExitStack() as running:
        first, server = in_step(running, tmp_path, room, PATIENT)
        first.kill()
        server.control.call("activate")
        room.fill(server)
        second = again(running, tmp_path, f"store={tmp_path / 'maps'}")
        says(server, "was not taken over: store=")
        assert not writable(server)
        assert second.status()["state"] == "sealed"
        room.free(server)
        wait_for(lambda: second.status()["state"] == "complete", "the source to be let go")
        assert server.status()["state"] == "standby"
        assert writable(second)
        server.control.call("activate", wait=True)
        assert writable(server)


def test_writes_wait_again_where_an_activation_that_failed_goes_on(
    tmp_path: Path, room: Room
) -> None:
    """Though it could not be noted that it had failed."""
    with ExitStack() as running:
        first, server = in_step(running, tmp_path, room, "retry-timeout=5")
        first.kill()
        server.control.call("activate")
        room.fill(server)
        says(server, "that can't be noted")
        assert server.status()["state"] == "activating"
        assert not writable(server)
        server.control.call("activate")
        with ThreadPoolExecutor(1) as pool:
            write = pool.submit(server.connect().pwrite, b"n" * BLOCK, 0)
            time.sleep(0.5)
            assert not write.done()
            room.free(server)
            again(running, tmp_path, f"store={tmp_path / 'maps'}")
            write.result(20)
        assert server.connect().pread(BLOCK, 0) == b"n" * BLOCK


def test_a_withdrawal_that_can_t_be_noted_changes_nothing(tmp_path: Path, room: Room) -> None:
    with target(tmp_path, SIZE_BYTES) as at_source:
        with standing_by(tmp_path, room, at_source.uri) as server:
            wait_for(lambda: server.status()["rounds"], "the copy ahead")
            server.control.call("activate", hold=True, wait=True)
            room.fill(server)
            with pytest.raises(RelocatorError, match=FULL):
                server.control.call("withdraw")
            assert server.status()["state"] == "activating"
            assert at_source.status()["state"] == "sealed"
            room.free(server)
            server.control.call("release")
            assert writable(server)
            assert server.wait()["state"] == "complete"


def test_a_source_whose_store_is_full_is_neither_sealed_nor_forgotten(
    tmp_path: Path, room: Room
) -> None:
    image(tmp_path)
    keys = ("mode=standby", "refresh=0.2", "retry-timeout=2")
    with source(tmp_path, f"store={room.path / 'maps'}", within=room.within) as full:
        with support.proxy(tmp_path, full, *keys) as server:
            wait_for(lambda: server.status()["rounds"], "the copy ahead")
            room.fill(full)
            with pytest.raises(RelocatorError, match=f"was not taken over.*{FULL}"):
                server.control.call("activate", wait=True)
            assert server.status()["state"] == "standby"
            assert full.status()["state"] == "complete"
            room.free(full)
            server.control.call("activate", hold=True, wait=True)
            room.fill(full)
            with pytest.raises(RelocatorError, match="withdrawn here"):
                server.control.call("withdraw")
            says(server, "the source can't be told")
            assert full.status()["state"] == "sealed"
            room.free(full)
            says(server, "None")
            assert writable(full)


def test_a_disk_on_a_full_file_system_moves_all_the_same(tmp_path: Path, room: Room) -> None:
    image(tmp_path)
    with source(tmp_path, f"store={room.path / 'maps'}", within=room.within) as full:
        with support.proxy(tmp_path, full, "mode=standby") as server:
            wait_for(lambda: server.status()["rounds"], "the copy ahead")
            full.connect().pwrite(b"n" * BLOCK, 0)
            room.fill(full, all_of_it=False)
            server.control.call("activate", wait=True)
            wait_for(lambda: full.status()["state"] == "sealed", "the seal")
            assert server.wait()["state"] == "complete"
            assert server.connect().pread(BLOCK, 0) == b"n" * BLOCK


def test_a_disk_on_a_full_file_system_starts_again_and_can_be_sealed(
    tmp_path: Path, room: Room
) -> None:
    image(tmp_path)
    store = f"store={room.path / 'maps'}"
    with room.kept() as within:
        with source(tmp_path, store, within=within) as server:
            server.connect().pwrite(b"n" * BLOCK, 0)
            room.fill(server, all_of_it=False)
            server.stop()
            assert server.process.returncode == 0
        for _ in range(3):
            with source(tmp_path, store, within=within) as server:
                assert server.connect().pread(BLOCK, 0) == b"n" * BLOCK
                assert writable(server)
                server.stop()
                assert server.process.returncode == 0
        with source(tmp_path, store, within=within) as server:
            server.control.call("seal")
            server.kill()
        with source(tmp_path, store, within=within) as server:
            assert server.status()["state"] == "sealed"
