"""Another disk is at the source's address for a while: nothing of it stays in the copy."""

import json
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.errors import RelocatorError
from relocator.source.identity import places
from tests.nbd.test_bitmaps import Guest, guest, qemu  # noqa: F401
from tests.nbd.test_handover import all_present
from tests.nbd.test_rests_on import in_the_place_of
from tests.support.model import source_bytes
from tests.support.servers import Server, nbdkit, plugin, wait_for
from tests.support.sites import BLOCK, SIZE_BYTES
from tests.support.storage_daemon import StorageDaemon, storage_daemon

NEW = b"new!" * (BLOCK // 4)


def target(site: Any, *, kept: bool) -> Any:
    """A target of the site's disk; without a store unless `kept`."""
    return in_the_place_of(site, site, kept=kept)


def has_time_for_more(proxy: Server) -> None:
    before = proxy.status()["present_blocks"]
    with suppress(AssertionError):  # nothing may come
        wait_for(lambda: proxy.status()["present_blocks"] > before + 16, "its blocks", 4.0)


def is_all_right(proxy: Server, model: bytearray) -> bool:
    """Whether what the proxy has once it is complete is what it should be."""
    with suppress(RelocatorError):  # it may be complete already
        proxy.control.call("set", rate="none")
    wait_for(lambda: proxy.status()["state"] == "complete", "the rest", 60.0)
    return proxy.connect().pread(SIZE_BYTES, 0) == model


def test_what_keeps_no_store_is_not_taken_over_for_a_source_that_has_one(sites: Any) -> None:
    a, b, c = sites
    c.image.write_bytes(bytes(reversed(source_bytes(SIZE_BYTES))))
    with ExitStack() as running:
        source = running.enter_context(a.target())
        proxy = running.enter_context(b.proxy(source, "mode=standby", "background=off"))
        wait_for(lambda: proxy.status()["source_connected"], "the source")
        source.kill()
        other = running.enter_context(in_the_place_of(a, c, kept=False))
        wait_for(lambda: "another disk" in str(proxy.status()["error"]), "the word of it")
        with pytest.raises(RelocatorError, match="another disk"):
            proxy.control.call("activate", wait=True)
        assert other.status()["state"] == "complete"
        other.connect().pwrite(NEW, 0)


def test_a_clone_with_a_store_of_its_own_is_not_sealed_for_the_source(sites: Any) -> None:
    a, b, c = sites
    clone = bytearray(a.image.read_bytes())
    at = SIZE_BYTES // 2 + 3 * BLOCK
    assert not any(at - place.length < place.offset < at + BLOCK for place in places(SIZE_BYTES))
    clone[at : at + BLOCK] = NEW
    c.image.write_bytes(clone)
    with ExitStack() as running:
        source = running.enter_context(a.target())
        keys = ("background=off", "readahead=0", "retry-timeout=3")
        proxy = running.enter_context(b.proxy(source, *keys))
        noted = b.directory / "store/meta.json"
        wait_for(lambda: json.loads(noted.read_text())["origin_samples"], "samples")
        source.kill()
        other = running.enter_context(in_the_place_of(a, c))
        wait_for(lambda: "another id" in str(proxy.status()["error"]), "the word of it")
        with pytest.raises(nbd.Error):
            proxy.connect().pread(BLOCK, at)
        assert other.status()["state"] == "complete"


@pytest.mark.parametrize("kept", [True, False], ids=("with a store", "without"))
def test_nothing_stays_of_what_answered_during_a_hold(sites: Any, kept: bool) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    c.image.write_bytes(bytes(reversed(model)))
    with ExitStack() as running:
        source = running.enter_context(a.target())
        proxy = running.enter_context(b.proxy(source, "mode=standby", "rate=4M"))
        wait_for(lambda: proxy.status()["present_blocks"] > 16, "some of the copy ahead")
        proxy.control.call("activate", hold=True, wait=True)
        source.kill()
        other = running.enter_context(in_the_place_of(a, c, kept=kept))
        has_time_for_more(proxy)
        other.kill()
        running.enter_context(a.target())
        proxy.control.call("release")
        assert is_all_right(proxy, model)


def test_a_source_without_a_store_that_is_started_again_during_a_hold_is_sealed_again(
    sites: Any,
) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with ExitStack() as running:
        source = running.enter_context(target(a, kept=False))
        proxy = running.enter_context(b.proxy(source, "mode=standby", "rate=4M"))
        wait_for(lambda: proxy.status()["present_blocks"] > 16, "some of the copy ahead")
        proxy.control.call("activate", hold=True, wait=True)
        time.sleep(1)  # what it is known by is noted, then
        source.kill()
        again = running.enter_context(target(a, kept=False))
        wait_for(lambda: "another disk" in str(proxy.status()["error"]), "the word of it")
        before = proxy.status()["present_blocks"]
        proxy.control.call("release")
        wait_for(lambda: again.status()["state"] == "sealed", "its seal")
        assert proxy.status()["present_blocks"] >= before
        assert is_all_right(proxy, model)


@pytest.mark.parametrize("kept", [True, False], ids=("with a store", "without"))
def test_whoever_answers_during_a_hold_undoes_no_seal_and_gets_none(sites: Any, kept: bool) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    c.image.write_bytes(bytes(reversed(model)))
    with ExitStack() as running:
        source = running.enter_context(target(a, kept=False))
        keys = ("mode=standby", "retry-timeout=2")
        proxy = running.enter_context(b.proxy(source, *keys))
        wait_for(lambda: all_present(proxy), "the copy ahead")
        proxy.control.call("activate", hold=True, wait=True)
        source.kill()
        other = running.enter_context(in_the_place_of(a, c, kept=kept))
        wait_for(lambda: "another disk" in str(proxy.status()["error"]), "the word of it")
        time.sleep(3)
        assert proxy.status()["seal_confirmed"] and proxy.status()["state"] == "activating"
        proxy.control.call("release")
        assert is_all_right(proxy, model)
        assert other.status()["state"] == "complete"
        other.connect().pwrite(NEW, 0)


@pytest.mark.parametrize("kept", [True, False], ids=("with a store", "without"))
def test_what_still_has_connections_when_the_source_is_back_is_not_read(
    sites: Any, kept: bool
) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    c.image.write_bytes(bytes(reversed(model)))
    with ExitStack() as running:
        source = running.enter_context(target(a, kept=kept))
        proxy = running.enter_context(b.proxy(source, "mode=standby", "rate=4M"))
        wait_for(lambda: proxy.status()["present_blocks"] > 16, "some of the copy ahead")
        source.kill()
        other = running.enter_context(plugin(c.directory, "target", f"disk={c.image}"))
        Path(other.socket).rename(source.socket)
        has_time_for_more(proxy)
        again = running.enter_context(target(a, kept=kept))  # the other one serves on
        proxy.control.call("activate", wait=True)
        assert again.status()["state"] == "sealed"
        assert is_all_right(proxy, model)


@pytest.mark.parametrize("how", ["refresh=off", "background=off"])
def test_a_source_without_a_store_that_is_started_again_is_copied_anew(
    sites: Any, how: str
) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with ExitStack() as running:
        source = running.enter_context(target(a, kept=False))
        proxy = running.enter_context(b.proxy(source, "mode=standby", how))
        if how == "refresh=off":
            wait_for(lambda: all_present(proxy), "the copy ahead")
        source.kill()
        with a.image.open("r+b") as image:
            image.write(NEW)
        model[:BLOCK] = NEW
        running.enter_context(target(a, kept=False))
        assert proxy.connect().pread(BLOCK, 0) == NEW
        if how == "refresh=off":
            wait_for(lambda: all_present(proxy), "the copy ahead, anew")
        proxy.control.call("activate", wait=True)
        assert proxy.connect().pread(SIZE_BYTES, 0) == model


def reversed_disk(tmp_path: Path) -> Path:
    """Another disk of that size, in a directory of its own."""
    image = tmp_path / "other" / "disk.img"
    image.parent.mkdir()
    image.write_bytes(bytes(reversed(source_bytes(SIZE_BYTES))))
    return image


@pytest.mark.parametrize("theirs", ["no bitmap", "one of that name"])
def test_nothing_stays_of_what_answered_between_two_readings_of_a_bitmap(
    tmp_path: Path,
    qemu: StorageDaemon,  # noqa: F811
    guest: Guest,  # noqa: F811
    theirs: str,
) -> None:
    image = reversed_disk(tmp_path)
    link, home = tmp_path / "link.sock", tmp_path / "qemu.sock"
    link.symlink_to(home)
    qemu.record("b0")
    qemu.offer("b0")
    with ExitStack() as running:
        if theirs == "no bitmap":
            other = running.enter_context(nbdkit(image.parent, "other", ["file", str(image)]))
            socket = Path(other.socket)
        else:
            daemon = running.enter_context(storage_daemon(image.parent, image))
            daemon.record("b0")
            daemon.offer("b0")
            socket = image.parent / "qemu.sock"
        source = f"source=nbd+unix:///disk?socket={link}"
        keys = (f"store={tmp_path / 'store'}", source, "mode=standby", "source-bitmap=b0")
        slowly = ("refresh=60", "rate=4M", "order=sequential")
        proxy = running.enter_context(plugin(tmp_path, "proxy", *keys, *slowly))
        wait_for(lambda: proxy.status()["present_blocks"] > 16, "some of the copy ahead")
        link.unlink()
        link.symlink_to(socket)
        qemu.hide()
        has_time_for_more(proxy)
        assert "another disk" in str(proxy.status()["error"])
        link.unlink()
        link.symlink_to(home)
        qemu.offer("b0")
        guest.close()
        proxy.control.call("activate", wait=True)
        assert is_all_right(proxy, guest.model)


def test_what_still_has_connections_when_a_source_that_is_no_relocator_is_back_is_not_read(
    tmp_path: Path,
) -> None:
    image, other_image = tmp_path / "disk", reversed_disk(tmp_path)
    model = source_bytes(SIZE_BYTES)
    image.write_bytes(model)
    with ExitStack() as running:
        source = running.enter_context(nbdkit(tmp_path, "source", ["file", str(image)]))
        keys = (f"store={tmp_path / 'store'}", f"source={source.uri}", "mode=standby")
        proxy = running.enter_context(plugin(tmp_path, "proxy", *keys))
        wait_for(lambda: proxy.status()["source_connected"], "the source")
        source.kill()
        other = nbdkit(other_image.parent, "other", ["file", str(other_image)])
        Path(running.enter_context(other).socket).rename(source.socket)
        wait_for(lambda: proxy.connect().pread(BLOCK, 0) != model[:BLOCK], "the other disk")
        running.enter_context(nbdkit(tmp_path, "source", ["file", str(image)]))
        proxy.control.call("activate", wait=True)
        assert is_all_right(proxy, model)
