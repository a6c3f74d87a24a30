"""A source that is not ours is copied ahead by its dirty bitmap, and nothing stale is believed."""

import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.errors import RelocatorError
from relocator.source.bitmaps import DirtyBitmap
from relocator.source.endpoint import Endpoint
from relocator.store.geometry import Geometry
from tests.nbd.test_rounds import at_work, relocator
from tests.support.model import source_bytes
from tests.support.servers import Server, plugin, refused, target, wait_for
from tests.support.storage_daemon import StorageDaemon, storage_daemon

SIZE_BYTES = 4 << 20
BLOCK = 4096
TOTAL = SIZE_BYTES // BLOCK


class Guest:
    """A guest at the source, and what the disk should hold."""

    def __init__(self, qemu: StorageDaemon) -> None:
        self.model = source_bytes(SIZE_BYTES)
        self._handle = qemu.guest()

    def write(self, block: int, blocks: int = 1, salt: int = 0) -> None:
        """Whole blocks."""
        data = bytes([1 + (block + salt) % 255]) * (blocks * BLOCK)
        self._handle.pwrite(data, block * BLOCK)
        self.model[block * BLOCK : block * BLOCK + len(data)] = data

    def close(self) -> None:
        """Disconnect."""
        self._handle.shutdown()


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[StorageDaemon]:
    image = tmp_path / "disk.img"
    image.write_bytes(source_bytes(SIZE_BYTES))
    with storage_daemon(tmp_path, image) as server:
        yield server


@pytest.fixture
def guest(qemu: StorageDaemon) -> Guest:
    return Guest(qemu)


def standby(tmp_path: Path, qemu: StorageDaemon, *keys: str) -> Any:
    wanted = (f"store={tmp_path / 'store'}", f"source={qemu.uri}", "mode=standby")
    if not any(key.startswith("source-bitmap=") for key in keys):
        keys = (*keys, "source-bitmap=b0")
    return plugin(tmp_path, "proxy", *wanted, *keys)


def present(proxy: Server) -> int:
    return int(proxy.status()["present_blocks"])


def behind(proxy: Server) -> int | None:
    found = proxy.status()["behind_bytes"]
    return None if found is None else int(found)


def switched(proxy: Server, guest: Guest, tmp_path: Path) -> dict[str, Any]:
    """Switch, and see that the disk is what it was; the status at the switch."""
    guest.close()
    at_the_switch = proxy.control.call("activate", wait=True)
    assert proxy.connect().pread(SIZE_BYTES, 0) == guest.model
    proxy.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == guest.model
    return at_the_switch


def test_what_was_not_written_is_copied_ahead_and_only_the_rest_after_the_switch(
    tmp_path: Path, qemu: StorageDaemon, guest: Guest
) -> None:
    qemu.record("b0")
    qemu.offer("b0")
    guest.write(3, 2)
    with standby(tmp_path, qemu, "refresh=0.1") as proxy:
        wait_for(lambda: present(proxy) == TOTAL - 2, "the copy ahead")
        wait_for(lambda: behind(proxy) == 2 * BLOCK, "a round in which nothing was written")
        assert proxy.status()["source_offers"] == "bitmap"
        guest.write(500, 7)
        wait_for(lambda: present(proxy) == TOTAL - 9, "a round")
        guest.write(500, 7, salt=1)  # the bitmap says nothing more
        wait_for(lambda: behind(proxy) == 9 * BLOCK, "a round in which nothing was written")
        assert relocator("wait", str(proxy.control_path), "--ready", "36K").returncode == 0
        before = proxy.status()
        guest.write(900)
        assert switched(proxy, guest, tmp_path)["dropped_blocks"] <= 1  # or a round was faster
        after = proxy.status()
        fetched = [one["on_demand_bytes"] + one["background_bytes"] for one in (before, after)]
        assert fetched[1] - fetched[0] == 10 * BLOCK
        assert not any("bitmap" in note for note in after["notes"])


def test_a_guest_that_writes_until_the_last(
    tmp_path: Path, qemu: StorageDaemon, guest: Guest
) -> None:
    qemu.record("b0", 65536)
    qemu.offer("b0")
    with standby(tmp_path, qemu, "refresh=0.1") as proxy:
        with at_work(guest.write, 700):
            wait_for(lambda: proxy.status()["rounds"] > 4, "some rounds")
        switched(proxy, guest, tmp_path)


@pytest.mark.parametrize(
    ("when", "what"),
    [
        ("in standby", "cleared"),
        ("in standby", "missing"),
        ("while the proxy is away", "replaced"),
        ("while the proxy is away", "missing"),
        ("at the switch", "cleared"),
        ("at the switch", "missing"),
    ],
)
def test_a_bitmap_that_began_anew_costs_the_copy_not_the_data(
    tmp_path: Path, qemu: StorageDaemon, guest: Guest, when: str, what: str
) -> None:
    def begin_anew() -> None:
        guest.write(41)  # only the bitmap that ends knows
        qemu.hide()
        if what == "cleared":
            qemu.clear("b0")
        else:
            qemu.forget("b0")
        if what == "missing":
            qemu.offer()
        else:
            if what == "replaced":
                qemu.record("b0", 65536)
            qemu.offer("b0")

    qemu.record("b0")
    qemu.offer("b0")
    guest.write(7)
    refresh = "refresh=off" if when == "at the switch" else "refresh=0.1"
    with standby(tmp_path, qemu, refresh) as proxy:
        wait_for(lambda: present(proxy) == TOTAL - 1, "the copy ahead")
        if when != "while the proxy is away":
            begin_anew()
            if when == "in standby":
                why = "missing" if what == "missing" else "cleared, or replaced"
                wait_for(lambda: any(why in note for note in proxy.status()["notes"]), "a round")
            seen = switched(proxy, guest, tmp_path)
            assert "all that had been copied ahead was dropped" in seen["notes"][0]
            if when == "at the switch":
                assert seen["dropped_blocks"] == TOTAL - 1
            return
        proxy.kill()
    begin_anew()
    with standby(tmp_path, qemu, refresh) as proxy:
        wait_for(lambda: proxy.status()["notes"], "the first round")
        if what == "missing":
            assert "no bitmap 'b0' any more" in proxy.status()["error"]
            assert present(proxy) == 0
            guest.write(42)  # nobody records it
            qemu.hide()
            qemu.record("b0")
            qemu.offer("b0")
        wait_for(lambda: present(proxy) == TOTAL, "the copy begun anew")
        wait_for(lambda: proxy.status()["error"] is None, "the fault to be over")
        switched(proxy, guest, tmp_path)


def test_a_proxy_killed_between_rounds_believes_nothing_stale(
    tmp_path: Path, qemu: StorageDaemon, guest: Guest
) -> None:
    qemu.record("b0")
    qemu.offer("b0")
    for number in range(4):
        with standby(tmp_path, qemu, "refresh=0.1") as proxy:
            guest.write(10 * number, 3)
            wait_for(lambda done=3 * (number + 1): present(proxy) == TOTAL - done, "the copy")
            guest.write(10 * number, 1, salt=9)
            guest.write(10 * number + 2, 1, salt=9)
            proxy.kill()
    guest.write(600)
    with standby(tmp_path, qemu, "refresh=off") as proxy:
        wait_for(lambda: behind(proxy) == 13 * BLOCK, "the first round")
        assert present(proxy) == TOTAL - 13
        notes = switched(proxy, guest, tmp_path)["notes"]
        assert not any("bitmap" in note for note in notes)


def test_another_bitmap_is_another_copy(tmp_path: Path, qemu: StorageDaemon, guest: Guest) -> None:
    qemu.record("b0")
    qemu.offer("b0")
    with standby(tmp_path, qemu) as proxy:
        wait_for(lambda: present(proxy) == TOTAL, "the copy ahead")
    guest.write(5)
    qemu.record("b1")
    qemu.hide()
    qemu.offer("b0", "b1")
    with standby(tmp_path, qemu, "source-bitmap=b1", "background=off") as proxy:
        assert present(proxy) == 0
        proxy.control.call("set", background="on")
        wait_for(lambda: present(proxy) == TOTAL, "the copy ahead")
        guest.write(6)
        switched(proxy, guest, tmp_path)


def test_a_switch_waits_for_a_source_that_is_silent(
    tmp_path: Path, qemu: StorageDaemon, guest: Guest
) -> None:
    qemu.record("b0")
    qemu.offer("b0")
    with standby(tmp_path, qemu, "refresh=off", "retry-timeout=3") as proxy:
        wait_for(lambda: present(proxy) == TOTAL, "the copy ahead")
        guest.write(5, 3)
        guest.close()
        qemu.hide()
        with pytest.raises(RelocatorError, match="not taken over"):
            proxy.control.call("activate", wait=True)
        assert proxy.status()["state"] == "standby"
        with pytest.raises(nbd.Error):
            proxy.connect().pwrite(b"x" * BLOCK, 0)
        qemu.offer("b0")
        wait_for(lambda: proxy.status()["source_connected"], "the source")
        qemu.process.send_signal(signal.SIGSTOP)
        proxy.control.call("activate")
        threading.Timer(0.5, qemu.process.send_signal, [signal.SIGCONT]).start()
        here = proxy.connect()
        proxy.control.call("activate", wait=True)
        here.pwrite(b"x" * BLOCK, 6 * BLOCK)
        guest.model[6 * BLOCK : 7 * BLOCK] = b"x" * BLOCK
        assert here.pread(SIZE_BYTES, 0) == guest.model
        proxy.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == guest.model


def test_a_proxy_killed_at_the_switch_asks_again(
    tmp_path: Path, qemu: StorageDaemon, guest: Guest
) -> None:
    qemu.record("b0")
    qemu.offer("b0")
    with standby(tmp_path, qemu, "refresh=off") as proxy:
        wait_for(lambda: present(proxy) == TOTAL, "the copy ahead")
        guest.write(5, 3)
        guest.close()
        proxy.control.call("activate", hold=True, wait=True)
        assert present(proxy) == TOTAL, "whether it stands still is known only at the release"
        proxy.kill()
    with standby(tmp_path, qemu, "background=off") as proxy:
        proxy.control.call("release")
        wait_for(lambda: proxy.status()["state"] == "active", "the switch")
        assert proxy.status()["dropped_blocks"] == 3
        here = proxy.connect()
        here.pwrite(b"x" * BLOCK, 9 * BLOCK)
        guest.model[9 * BLOCK : 10 * BLOCK] = b"x" * BLOCK
        assert here.pread(SIZE_BYTES, 0) == guest.model


@pytest.mark.parametrize("refresh", ["0.1", "off"])
def test_the_copy_stays_in_step_after_the_disk_was_given_back(
    tmp_path: Path, qemu: StorageDaemon, guest: Guest, refresh: str
) -> None:
    qemu.record("b0")
    qemu.offer("b0")
    guest.write(3, 2)
    with standby(tmp_path, qemu, f"refresh={refresh}") as proxy:
        wait_for(lambda: behind(proxy) == 2 * BLOCK, "the copy ahead")
        guest.write(5)
        proxy.control.call("pause")  # a disk that is complete is not given back
        proxy.control.call("activate", wait=True)
        assert proxy.control.call("withdraw")["state"] == "standby"
        guest.write(500, 7)
        proxy.control.call("resume")
        wait_for(lambda: proxy.status()["source_offers"] == "bitmap", "a round")
        wait_for(lambda: present(proxy) == TOTAL - 10, "the copy ahead")
        proxy.kill()
    guest.write(900)
    with standby(tmp_path, qemu, "refresh=off") as proxy:
        wait_for(lambda: behind(proxy) == 11 * BLOCK, "the first round")
        assert not any("bitmap" in note for note in switched(proxy, guest, tmp_path)["notes"])


def test_what_does_not_go_together_is_refused(tmp_path: Path, qemu: StorageDaemon) -> None:
    qemu.offer()
    store = f"store={tmp_path / 'store'}"
    wanted = [store, f"source={qemu.uri}", "source-bitmap=b0"]
    missing = refused(*wanted, "mode=standby")
    assert "source-bitmap=b0: " in missing and "offers no such bitmap" in missing
    assert "block-dirty-bitmap-add" in missing and 'bitmaps=["b0"]' in missing
    assert "source-bitmap=b0: is for mode=standby" in refused(*wanted)
    assert "source-bitmap=: not a name" in refused(*wanted[:2], "source-bitmap=", "mode=standby")
    (tmp_path / "ours").mkdir()
    with target(tmp_path / "ours", SIZE_BYTES) as ours:
        keys = (store, f"source={ours.uri}", "mode=standby", "source-bitmap=b0")
        assert "the source is a relocator; leave it out" in refused(*keys)


def test_a_bitmap_is_read_in_pieces(tmp_path: Path) -> None:
    image, size_bytes = tmp_path / "large.img", (5 << 30) + 65536
    subprocess.run(["truncate", "-s", str(size_bytes), str(image)], check=True)
    wanted = {0, 1, 262_143, 262_144, 700_000, (size_bytes >> 12) - 1}
    with storage_daemon(tmp_path, image) as qemu:
        qemu.record("b0")
        qemu.offer("b0")
        handle = qemu.guest()
        for block in wanted:
            handle.pwrite(b"1" * BLOCK, block * BLOCK)
        bitmap = DirtyBitmap(Endpoint(qemu.uri), "b0")
        for _ in range(2):
            found = bitmap.read(Geometry(size_bytes))
            assert found is not None
            runs = found.set_runs(0, found.bits)
            assert {block for first, end in runs for block in range(first, end)} == wanted
        coarse = bitmap.read(Geometry(size_bytes, 1 << 20))
        assert coarse is not None
        assert coarse.count() == len({block >> 8 for block in wanted})
        handle.shutdown()
        bitmap.close()
