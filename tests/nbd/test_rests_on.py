"""What a copy rests on: a source that can no longer vouch for it says so, whatever happened."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.errors import RelocatorError
from tests.nbd.test_handover import all_present
from tests.support.model import source_bytes
from tests.support.relay import relay
from tests.support.servers import PLUGIN, Server, mistaken, plugin, wait_for
from tests.support.sites import BLOCK, SIZE_BYTES, reboot

NEW = b"new!" * (BLOCK // 4)
#: is killed when it would note that it serves the disk, or once the maps are as a return begins
_DIES = """
import os as _os, signal as _signal
from relocator.store.store import Store as _Store
_real = _Store.{when}
def _dying(self, *arguments, **changes):
    if "{when}" != "update":
        _real(self, *arguments, **changes)
    _os.kill(_os.getpid(), _signal.SIGKILL)
_Store.{when} = _dying
"""

#: keeps the durable map as it is on the disk for certain; with a file `go`, is killed before that
_KEEPS = """
import os as _os, shutil as _shutil, signal as _signal
_sync = _os.fdatasync
def _keeping(fd):
    path = _os.readlink(f"/proc/self/fd/{{fd}}")
    if path.endswith("map.durable") and _os.path.exists("{go}"):
        _os.kill(_os.getpid(), _signal.SIGKILL)
    _sync(fd)
    if path.endswith("map.durable"):
        _shutil.copy(path, path + ".synced")
_os.fdatasync = _keeping
"""

#: with a file `go`, is killed when it would set the second of the two bits of a write of block 5
_BETWEEN = """
import os as _os, signal as _signal
from relocator.store.bitmap import Bitmap as _Bitmap
_set, _asked = _Bitmap.set, []
def _dying(self, first, end):
    if (first, end) == (5, 6) and _os.path.exists("{go}"):
        _asked.append(self)
        if len(_asked) == 2:
            _os.kill(_os.getpid(), _signal.SIGKILL)
    return _set(self, first, end)
_Bitmap.set = _dying
"""

#: notes in a file that it was asked for its seal
_NOTES_SEALS = """
from pathlib import Path as _Path
from relocator.running.handover import Handover as _Handover
_seal = _Handover.seal
def _noted(self, *arguments, **options):
    _Path("{asked}").touch()
    return _seal(self, *arguments, **options)
_Handover.seal = _noted
"""


def in_the_place_of(site: Any, other: Any, *, kept: bool = True) -> Any:
    """A target at the site's address that serves the other's disk, with its store if `kept`."""
    store = [f"store={other.maps}"] if kept else []
    return plugin(site.directory, "target", f"disk={other.image}", *store)


def test_what_was_copied_ahead_of_a_site_that_gave_the_disk_back_is_stale(sites: Any) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as first, b.proxy(first, "mode=standby", "background=off") as second:
        second.control.call("activate", wait=True)
        slowly = ("mode=standby", "order=sequential", "rate=2M")
        with c.proxy(second, *slowly) as third:
            wait_for(lambda: third.status()["present_blocks"] > 16, "some of the copy ahead")
            third.control.call("pause")  # all of it would make the site in the middle complete
            second.control.call("withdraw")
            first.connect().pwrite(NEW, 0)
            model[:BLOCK] = NEW
            second.control.call("activate", wait=True)
            assert second.connect().pread(BLOCK, 0) == NEW
            third.control.call("activate", wait=True)
            assert third.connect().pread(SIZE_BYTES, 0) == model


@pytest.mark.parametrize("how", ["killed", "full"])
def test_a_source_that_does_not_come_up_at_once_after_a_power_failure(
    sites: Any, tmp_path: Path, how: str
) -> None:
    a, b, _ = sites
    with a.target() as first, b.proxy(first, "mode=standby", "refresh=off") as second:
        wait_for(lambda: all_present(second), "the copy ahead")
        first.connect().pwrite(NEW, 0)
        first.kill()
        reboot(a.maps)
        wanted = (f"disk={a.image}", f"store={a.maps}")
        comes_to_nothing(a.directory, a.maps, "target", *wanted, file=wrong(tmp_path, how))
        with a.target() as again:
            assert again.connect().pread(BLOCK, 0) == NEW
            second.control.call("activate", wait=True)
            assert second.connect().pread(BLOCK, 0) == NEW


def comes_to_nothing(at: Path, store: Path, name: str, *keys: str, file: Path | None) -> None:
    """A server ends as it starts: its store has no room, or else `file` is where it is killed."""
    in_the_way = store / "meta.json.new"
    if file is None:
        in_the_way.mkdir()
    with pytest.raises(RuntimeError, match="ended early"):
        with plugin(at, name, *keys, file=file or PLUGIN):
            raise AssertionError("it has started")
    if file is None:
        in_the_way.rmdir()


def wrong(tmp_path: Path, how: str, when: str = "update") -> Path | None:
    """A plugin that is killed, once `when` of its store has been done, or before."""
    return mistaken(tmp_path, _DIES.format(when=when)) if how == "killed" else None


@pytest.mark.parametrize("how", ["killed", "full"])
def test_a_return_that_did_not_begin_leaves_known_what_was_written(
    sites: Any, tmp_path: Path, how: str
) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    store = b.directory / "store"
    with a.target() as first:
        with b.proxy(first) as second:
            second.wait()
            second.connect().pwrite(NEW, 0)
            model[:BLOCK] = NEW
            with c.proxy(second) as third:
                third.wait()
                second.kill()
                wanted = (f"store={store}", f"source={third.uri}", "mode=standby")
                file = wrong(tmp_path, how, "begin_copy")
                comes_to_nothing(b.directory, store, "proxy", *wanted, file=file)
    # The third site is lost for good: the second goes on by force, and its disk is to return.
    with plugin(b.directory, "proxy", f"store={store}") as second:
        second.control.call("unseal", force=True)
        assert second.connect().pread(SIZE_BYTES, 0) == model
        wanted = (f"store={a.maps}", f"disk={a.image}", f"source={second.uri}")
        with plugin(a.directory, "proxy", *wanted) as first:
            done = first.wait()
            assert first.connect().pread(SIZE_BYTES, 0) == model
            came = sum(done[what] for what in ("background_bytes", "on_demand_bytes", "hole_bytes"))
            # If it was killed, nobody knows what was written there: all of it comes.
            assert came == (SIZE_BYTES if how == "killed" else BLOCK)


def test_a_flush_asked_for_again_after_a_kill_outlives_a_power_failure(
    sites: Any, tmp_path: Path
) -> None:
    a, b, _ = sites
    store, go = b.directory / "store", tmp_path / "go"
    with a.target() as first:
        wanted = (f"store={store}", f"source={first.uri}", "background=off")
        file = mistaken(tmp_path, _KEEPS.format(go=str(go)))
        with plugin(b.directory, "proxy", *wanted, file=file) as second:
            guest = second.connect()
            guest.pwrite(NEW, BLOCK)
            guest.flush()
            go.touch()  # before there is something to commit: that is done now and then, too
            guest.pwrite(NEW, 0)
            with pytest.raises(nbd.Error):
                guest.flush()
        go.unlink()
        with plugin(b.directory, "proxy", *wanted, file=file) as second:
            second.connect().flush()
            second.kill()
        reboot(store)
        (store / "map.durable.synced").replace(store / "map.durable")
        with plugin(b.directory, "proxy", *wanted) as second:
            assert second.connect().pread(2 * BLOCK, 0) == 2 * NEW


@contextmanager
def writes_again(at: Any, source: Server, directory: Path, *, whole: bool) -> Iterator[Server]:
    """A proxy that is killed in the midst of a write, and started again; its guest repeats that."""
    go = directory / "go"
    wanted = [f"store={at.directory / 'store'}", f"source={source.uri}"]
    wanted += [] if whole else ["background=off"]
    file = mistaken(directory, _BETWEEN.format(go=str(go)))
    with plugin(at.directory, "proxy", *wanted, file=file) as proxy:
        if whole:
            proxy.wait()
        go.touch()
        with pytest.raises(nbd.Error):
            proxy.connect().pwrite(NEW, 5 * BLOCK)
        assert proxy.process.wait(10) == -signal.SIGKILL
    with plugin(at.directory, "proxy", *wanted) as proxy:
        guest = proxy.connect()
        guest.pwrite(NEW, 5 * BLOCK)
        guest.flush()
        yield proxy


def test_a_return_brings_a_write_that_was_asked_for_again_after_a_kill(
    sites: Any, tmp_path: Path
) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    model[5 * BLOCK : 6 * BLOCK] = NEW
    with ExitStack() as running:
        first = running.enter_context(a.target())
        second = running.enter_context(writes_again(b, first, tmp_path, whole=True))
        first.kill()
        wanted = (f"store={a.maps}", f"disk={a.image}", f"source={second.uri}")
        back = running.enter_context(plugin(a.directory, "proxy", *wanted))
        back.wait()
        assert back.connect().pread(SIZE_BYTES, 0) == model


def test_a_disk_is_not_given_back_after_a_write_that_was_asked_for_again(
    sites: Any, tmp_path: Path
) -> None:
    a, b, _ = sites
    with a.target() as first, writes_again(b, first, tmp_path, whole=False) as second:
        with pytest.raises(RelocatorError, match="1 blocks were written here"):
            second.control.call("withdraw")
        assert second.connect().pread(BLOCK, 5 * BLOCK) == NEW


@pytest.mark.parametrize("first_is", ["up", "down"])
def test_a_site_that_has_moved_on_starts_again_as_it_was_started(sites: Any, first_is: str) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as first:
        with b.proxy(first) as second:
            second.wait()
            with c.proxy(second, "background=off", "readahead=0") as third:
                second.kill()
                if first_is == "down":
                    first.kill()
                with b.proxy(first):  # its service's configuration names its source still
                    assert third.connect().pread(SIZE_BYTES, 0) == model


@pytest.mark.parametrize("refresh", ["0.1", "off"])
def test_what_comes_in_the_place_of_a_source_is_not_taken_over_for_it(
    sites: Any, refresh: str
) -> None:
    """As where two disks of one size have changed ports while a proxy stands by."""
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    c.image.write_bytes(bytes(reversed(model)))
    with ExitStack() as running:
        target = running.enter_context(a.target())
        proxy = running.enter_context(b.proxy(target, "mode=standby", f"refresh={refresh}"))
        wait_for(lambda: all_present(proxy), "the copy ahead")
        target.kill()
        other = running.enter_context(in_the_place_of(a, c))
        wait_for(lambda: "another disk" in str(proxy.status()["error"]), "the word of it")
        with pytest.raises(RelocatorError, match="another disk"):
            proxy.control.call("activate", wait=True)
        wait_for(lambda: other.status()["state"] == "complete", "the word that it goes on")
        other.connect().pwrite(b"goes on", 0)
        other.kill()
        running.enter_context(a.target())
        proxy.control.call("activate", wait=True)
        assert proxy.connect().pread(SIZE_BYTES, 0) == model


@pytest.mark.parametrize("noticed", [True, False])
def test_what_comes_in_the_place_of_a_source_is_not_sealed(
    sites: Any, tmp_path: Path, noticed: bool
) -> None:
    a, b, c = sites
    c.image.write_bytes(a.image.read_bytes())
    asked = tmp_path / "asked"
    file = mistaken(tmp_path, _NOTES_SEALS.format(asked=str(asked)))
    with ExitStack() as running:
        target = running.enter_context(a.target())
        proxy = running.enter_context(b.proxy(target, "mode=standby", "background=off"))
        wait_for(lambda: proxy.status()["source_connected"], "the source")
        target.kill()
        wanted = (f"disk={c.image}", f"store={c.maps}")
        other = running.enter_context(plugin(a.directory, "target", *wanted, file=file))
        if noticed:
            wait_for(lambda: "another disk" in str(proxy.status()["error"]), "the word of it")
            time.sleep(1.0)  # in which something might be made ready
        with pytest.raises(RelocatorError, match="another disk"):
            proxy.control.call("activate", wait=True)
        assert not asked.exists()
        other.kill()
        again = running.enter_context(a.target())
        proxy.control.call("activate", wait=True)
        assert again.status()["state"] == "sealed"


@pytest.mark.parametrize("mode", ["standby", "active"])
def test_a_source_that_is_reached_now_and_then_is_not_taken_for_one_that_needs_no_seal(
    sites: Any, tmp_path: Path, mode: str
) -> None:
    """As where one of the ways to it is dead, and each connection takes another one."""
    a, b, _ = sites
    with a.target() as target:
        every_other = relay(
            tmp_path / "link.sock", target.socket, takes=lambda number: number % 2 == 1
        )
        with every_other as link, suppress(RuntimeError):
            wanted = (f"store={b.directory / 'store'}", f"source={link.uri}", f"mode={mode}")
            with plugin(b.directory, "proxy", *wanted) as proxy:
                proxy.control.call("activate", wait=True)
                proxy.connect().pwrite(b"there", 0)
                with pytest.raises(nbd.Error, match="EPERM"):
                    target.connect().pwrite(b"here", 0)


@pytest.mark.parametrize("kept", [True, False], ids=("with a store", "without"))
def test_nothing_is_copied_ahead_of_what_was_in_the_place_of_the_source_for_a_while(
    sites: Any, kept: bool
) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    c.image.write_bytes(bytes(reversed(model)))
    with ExitStack() as running:
        target = running.enter_context(a.target())
        proxy = running.enter_context(b.proxy(target, "mode=standby", "rate=4M"))
        wait_for(lambda: proxy.status()["present_blocks"] > 16, "some of the copy ahead")
        target.kill()
        other = running.enter_context(in_the_place_of(a, c, kept=kept))
        before = proxy.status()["present_blocks"]
        with suppress(AssertionError):  # it may be found out at once
            wait_for(lambda: proxy.status()["present_blocks"] > before + 64, "its blocks", 5.0)
        other.kill()
        running.enter_context(a.target())
        proxy.control.call("set", rate="none")
        wait_for(lambda: all_present(proxy), "the copy ahead")
        proxy.control.call("activate", wait=True)
        assert proxy.connect().pread(SIZE_BYTES, 0) == model


def test_the_word_that_a_disk_is_given_back_reaches_that_disk(sites: Any) -> None:
    a, b, c = sites
    c.image.write_bytes(a.image.read_bytes())
    with ExitStack() as running:
        target = running.enter_context(a.target())
        proxy = running.enter_context(b.proxy(target, "mode=standby", "background=off"))
        proxy.control.call("activate", wait=True)
        target.kill()
        other = running.enter_context(in_the_place_of(a, c))
        with suppress(RelocatorError):  # it says that it can't be told yet
            proxy.control.call("withdraw")
        other.kill()
        again = running.enter_context(a.target())
        wait_for(lambda: again.status()["state"] == "complete", "the word", 60.0)
        again.connect().pwrite(NEW, 0)


@pytest.mark.parametrize("how", ["without a store", "standing by"])
def test_a_disk_is_given_back_to_the_one_that_was_sealed(sites: Any, how: str) -> None:
    """Not to one that may be it, started again without its store, or that has no seal to undo."""
    a, b, c = sites
    c.image.write_bytes(a.image.read_bytes())
    with ExitStack() as running:
        target = running.enter_context(a.target())
        proxy = running.enter_context(b.proxy(target, "mode=standby", "background=off"))
        proxy.control.call("activate", wait=True)
        target.kill()
        if how == "without a store":
            other = running.enter_context(in_the_place_of(a, c, kept=False))
        else:
            third = running.enter_context(c.target())
            wanted = (f"store={c.directory / 'store'}", f"source={third.uri}", "mode=standby")
            other = running.enter_context(plugin(a.directory, "target", *wanted))
        with pytest.raises(RelocatorError, match="another disk"):
            proxy.control.call("withdraw")
        other.kill()
        again = running.enter_context(a.target())
        wait_for(lambda: again.status()["state"] == "complete", "the word", 60.0)
        again.connect().pwrite(NEW, 0)


def test_a_proxy_that_is_started_again_gives_the_disk_back_to_the_one_that_was_sealed(
    sites: Any,
) -> None:
    a, b, c = sites
    c.image.write_bytes(a.image.read_bytes())
    standby = ("mode=standby", "background=off")
    with ExitStack() as running:
        target = running.enter_context(a.target())
        proxy = running.enter_context(b.proxy(target, *standby))
        proxy.control.call("activate", wait=True)
        target.kill()
        with pytest.raises(RelocatorError, match="can't be told"):
            proxy.control.call("withdraw")
        proxy.kill()
        proxy = running.enter_context(b.proxy(target, *standby))
        other = running.enter_context(in_the_place_of(a, c, kept=False))
        wait_for(lambda: "another disk" in str(proxy.status()["error"]), "it to be found out")
        assert proxy.control.call("identify")["withdrawn"]
        other.kill()
        again = running.enter_context(a.target())
        wait_for(lambda: again.status()["state"] == "complete", "the word", 60.0)
        again.connect().pwrite(NEW, 0)
