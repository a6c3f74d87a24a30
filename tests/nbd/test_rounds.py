"""In standby a copy keeps in step with the guest, round by round, and loses nothing that way."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from relocator.errors import RelocatorError
from tests.nbd.test_rest import SIZE_BYTES, Site, absent
from tests.support.servers import Server, mistaken, plugin, wait_for

#: a source that doesn't give an answer again that was lost
_OLD = """
from relocator.running.handover import Handover
_identify = Handover.identify
Handover.identify = lambda self: {k: v for k, v in _identify(self).items() if k != "digests"}
"""
#: a source whose answer to the first round with something in it comes only once a file is there
_SLOW = """
import time as _time
from relocator.running.handover import Handover
_epoch = Handover.epoch
def _slow(self, known=None):
    fields, ended = _epoch(self, known)
    while fields["epoch"] != known and known is not None and not Path(GO).exists():
        _time.sleep(0.01)
    return fields, ended
Handover.epoch = _slow
"""
#: a proxy that notes each time it goes through the order of the disk
_NOTES_WALKS = """
from relocator.copying.plan import Plan as _Plan
_ranges = _Plan.ranges
def _noted(self):
    with Path(GO).open("a") as _file:
        _file.write("x")
    return _ranges(self)
_Plan.ranges = _noted
"""
#: a proxy whose store has no room for the last commit until a file is there
_NO_ROOM = """
import errno as _errno
from relocator.running.lifecycle import Lifecycle as _Lifecycle
_complete = _Lifecycle.complete
def _full(self):
    if not Path(GO).exists():
        raise OSError(_errno.ENOSPC, "no room")
    _complete(self)
_Lifecycle.complete = _full
"""
#: a proxy that notes each round that it asks for
_NOTES_ROUNDS = """
from relocator.running.epochs import Epochs as _Epochs
_drop = _Epochs.drop
def _noted(self):
    with Path(GO).open("a") as _file:
        _file.write("x")
    return _drop(self)
_Epochs.drop = _noted
"""
#: a proxy that takes its time to tell the source that the disk is given back, and its fault then
_SLOW_WORD = """
import time as _time
from relocator.running.activation import Activation as _Activation
_give_back = _Activation._give_back
def _late(self):
    _time.sleep(1)
    Path(GO).write_text(str(self._parts.faults.told("handover")))
    _give_back(self)
_Activation._give_back = _late
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def standby(tmp_path: Path, target: Server, *keys: str, **more: Any) -> Any:
    wanted = (f"store={tmp_path / 'store'}", f"source={target.uri}", "mode=standby")
    return plugin(tmp_path, "proxy", *wanted, *keys, **more)


def epoch(target: Server) -> int:
    return int(target.control.call("identify")["epoch"])


@contextmanager
def at_work(write: Callable[[int, int], None], blocks: int) -> Iterator[None]:
    """A guest that writes a few blocks, again and again, as `write(block, count)` does it."""
    stop = threading.Event()

    def run() -> None:
        block = 0
        while not stop.is_set():
            block = (block * 5 + 7) % blocks
            write(block, 1 + block % 9)

    writer = threading.Thread(target=run)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def relocator(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "relocator.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_copy_keeps_in_step_and_says_how_far_behind_it_is(tmp_path: Path, site: Site) -> None:
    with site.serve() as target, standby(tmp_path, target, "refresh=0.2") as proxy:
        wait_for(lambda: proxy.status()["rounds"], "the copy ahead")
        begun = epoch(target)
        site.write(target.connect(), 100, 50)
        wait_for(lambda: epoch(target) > begun, "a round")
        wait_for(lambda: absent(proxy) == 0, "what was written")
        wait_for(
            lambda: proxy.status()["behind_bytes"] == 0, "a round in which nothing was written"
        )
        rounds = proxy.status()["rounds"]
        wait_for(lambda: proxy.status()["rounds"] > rounds, "another round")
        assert epoch(target) == begun + 1  # in which nothing was written
        proxy.control.call("activate", wait=True)
        done = proxy.wait()
        assert (done["dropped_blocks"], done["behind_bytes"]) == (0, None)
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_a_copy_that_is_in_step_walks_the_disk_no_more(tmp_path: Path, site: Site) -> None:
    """A standby may last for days: it must not cost a core."""
    walks = tmp_path / "walks"
    file = mistaken(tmp_path, _NOTES_WALKS.replace("GO", repr(str(walks))))
    with site.serve() as target, standby(tmp_path, target, "refresh=0.2", file=file) as proxy:
        wait_for(lambda: proxy.status()["rounds"] > 1, "the copy ahead")
        walked = walks.stat().st_size
        rounds = proxy.status()["rounds"]
        wait_for(lambda: proxy.status()["rounds"] > rounds + 2, "some rounds")
        assert walks.stat().st_size == walked
        site.write(target.connect(), 100, 50)
        wait_for(lambda: walks.stat().st_size > walked, "what was written to be copied")
        wait_for(lambda: absent(proxy) == 0, "all of it")


def test_a_disk_given_back_before_the_last_commit_is_not_complete_by_that(
    tmp_path: Path, site: Site
) -> None:
    room = tmp_path / "room"
    file = mistaken(tmp_path, _NO_ROOM.replace("GO", repr(str(room))))
    with site.serve() as target, standby(tmp_path, target, "refresh=0.2", file=file) as proxy:
        wait_for(lambda: proxy.status()["rounds"], "the copy ahead")
        proxy.control.call("activate", wait=True)
        wait_for(lambda: "no room" in (proxy.status()["error"] or ""), "the last commit to fail")
        proxy.control.call("withdraw")
        assert proxy.status()["error"] is None
        rounds = proxy.status()["rounds"]
        site.write(target.connect(), 100, 50)
        wait_for(lambda: proxy.status()["rounds"] > rounds + 1, "a round")
        wait_for(lambda: absent(proxy) == 0, "what was written to be copied ahead again")
        site.write(target.connect(), 300, 50)
        room.touch()
        proxy.control.call("activate", wait=True)
        wait_for(lambda: proxy.status()["state"] != "activating", "the switch")
        assert proxy.connect().pread(SIZE_BYTES, 0) == site.model
        proxy.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_the_switch_is_whole_while_the_guest_writes_until_the_last(
    tmp_path: Path, site: Site
) -> None:
    with site.serve() as target, standby(tmp_path, target, "refresh=0.1") as proxy:
        guest = target.connect()
        with at_work(lambda block, count: site.write(guest, block, count), 1000):
            wait_for(lambda: proxy.status()["rounds"] > 8, "some rounds")
        proxy.control.call("activate", wait=True)
        assert proxy.connect().pread(SIZE_BYTES, 0) == site.model
        proxy.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_a_switch_does_not_wait_for_a_round_and_drops_what_that_ended(
    tmp_path: Path, site: Site
) -> None:
    with site.serve(mistake=_SLOW) as target, standby(tmp_path, target, "refresh=0.1") as proxy:
        wait_for(lambda: proxy.status()["rounds"], "the copy ahead")
        begun, guest = epoch(target), target.connect()
        site.write(guest, 100, 3)
        wait_for(lambda: epoch(target) > begun, "a round whose answer does not come")
        site.write(guest, 101, 5)
        assert proxy.control.call("activate", wait=True)["dropped_blocks"] == 6
        assert proxy.connect().pread(SIZE_BYTES, 0) == site.model
        site.go_on()
        proxy.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_a_proxy_killed_in_a_round_is_told_again(tmp_path: Path, site: Site) -> None:
    with site.serve(mistake=_SLOW) as target:
        with standby(tmp_path, target, "refresh=0.1") as proxy:
            wait_for(lambda: proxy.status()["rounds"], "the copy ahead")
            begun = epoch(target)
            site.write(target.connect(), 100, 3)
            wait_for(lambda: epoch(target) > begun, "a round whose answer does not come")
            proxy.kill()
        site.go_on()
        with standby(tmp_path, target, "refresh=off", "background=off") as proxy:
            assert proxy.control.call("refresh")["refreshed_blocks"] == 3
            assert absent(proxy) == 3
            proxy.control.call("activate", wait=True)
            assert proxy.connect().pread(SIZE_BYTES, 0) == site.model


def test_a_source_of_an_older_version_is_asked_by_the_operator_only(
    tmp_path: Path, site: Site
) -> None:
    with site.serve(mistake=_OLD) as target, standby(tmp_path, target, "refresh=0.1") as proxy:
        wait_for(lambda: absent(proxy) == 0, "the copy ahead")
        begun = epoch(target)
        site.write(target.connect(), 100, 3)
        assert proxy.control.call("refresh")["refreshed_blocks"] == 3
        assert (epoch(target), proxy.status()["rounds"]) == (begun + 1, 1)
        proxy.control.call("activate", wait=True)
        assert proxy.connect().pread(SIZE_BYTES, 0) == site.model


def test_with_the_source_lost_nothing_is_ready(tmp_path: Path, site: Site) -> None:
    with site.serve() as target, standby(tmp_path, target, "refresh=0.2") as proxy:
        control = str(proxy.control_path)
        assert relocator("wait", control, "--ready", "1M").returncode == 0
        target.kill()
        wait_for(lambda: proxy.status()["faults"]["handover"], "a round to fail")
        lost = relocator("wait", control, "--ready", "1M", "--timeout", "0.1")
        assert lost.returncode == 1
        assert str(proxy.status()["faults"]["handover"])[:20] in lost.stderr.replace("\n", " ")


def test_a_copy_whose_source_refuses_a_round_says_so_and_asks_again_later(
    tmp_path: Path, site: Site
) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "second").mkdir()
    file = mistaken(tmp_path, _NOTES_ROUNDS.replace("GO", repr(str(asked))))
    with site.serve() as target, standby(tmp_path / "second", target) as second:
        with standby(tmp_path, target, file=file) as proxy:
            wait_for(lambda: proxy.status()["rounds"], "a round")
            second.control.call("activate", wait=True)
            why = lambda: str(proxy.status()["faults"]["handover"])  # noqa: E731
            wait_for(lambda: "the copy is not kept in step" in why(), "it to be said")
            assert "'epoch' is refused: the disk is sealed" in why()
            before = len(asked.read_text())
            time.sleep(2)
            assert len(asked.read_text()) <= before + 1
            ready = relocator("wait", str(proxy.control_path), "--ready", "1M", "--timeout", "0.1")
            assert (ready.returncode, "not kept in step" in ready.stderr) == (1, True)


def test_no_round_is_asked_for_while_a_withdrawal_is_owed(tmp_path: Path, site: Site) -> None:
    """The source is sealed still, and would refuse it."""
    fault = tmp_path / "fault"
    file = mistaken(tmp_path, _SLOW_WORD.replace("GO", repr(str(fault))))
    with site.serve() as target, standby(tmp_path, target, "refresh=0.2", file=file) as proxy:
        wait_for(lambda: proxy.status()["rounds"], "a round")
        proxy.control.call("activate", hold=True, wait=True)
        proxy.control.call("withdraw")
        assert fault.read_text() == "None"


def test_an_orchestrator_waits_until_little_is_left(tmp_path: Path, site: Site) -> None:
    with site.serve() as target, standby(tmp_path, target, "refresh=0.2") as proxy:
        control = str(proxy.control_path)
        assert relocator("wait", control, "--ready", "1M").returncode == 0
        assert relocator("wait", control, "--ready", "0.5s").returncode == 0
        assert "behind" in relocator("status", control).stdout
        wrong = relocator("wait", control, "--ready", "soon")
        assert wrong.returncode == 2
        assert "--ready=soon: write a size such as 64M, or seconds such as 2s" in wrong.stderr
        proxy.control.call("pause")
        site.write(target.connect(), 0, 100)
        paused = relocator("wait", control, "--ready", "1M")
        assert (paused.returncode, "copy is paused" in paused.stderr) == (1, True)
        proxy.control.call("resume")
        with pytest.raises(RelocatorError, match="refresh=0: too often"):
            proxy.control.call("set", refresh="0")
        proxy.control.call("set", refresh="off")
        off = relocator("wait", control, "--ready", "1M")
        assert (off.returncode, "refresh is off" in off.stderr) == (1, True)
        proxy.control.call("activate", wait=True)
        moved = relocator("wait", control, "--ready", "1M")
        assert (moved.returncode, "not in standby" in moved.stderr) == (1, True)
        assert proxy.connect().pread(SIZE_BYTES, 0) == site.model
