"""Whose seal it is: a sealed disk goes to one site, and to no other."""

import signal
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.errors import RelocatorError
from relocator.store import meta as metadata
from tests.nbd.test_handover import all_present
from tests.support.model import source_bytes
from tests.support.servers import mistaken, plugin, refused, wait_for
from tests.support.sites import BLOCK, SIZE_BYTES, scribble

#: the thread that answers a seal comes to nothing between who the disk is and what was written
_SLOW_ANSWER = """
import pathlib as _pathlib, time as _time
from relocator.running.verbs import Verbs as _Verbs
_maps = _Verbs._maps
def _late(self):
    asked = _pathlib.Path("{asked}")
    if self._parts.lifecycle.state == "sealed" and not asked.exists():
        asked.touch()
        give_up_s = _time.monotonic() + 20
        while not _pathlib.Path("{goes_on}").exists() and _time.monotonic() < give_up_s:
            _time.sleep(0.01)
    return _maps(self)
_Verbs._maps = _late
"""


def test_a_seal_can_be_undone_until_a_proxy_is_active(sites: Any) -> None:
    a, b, _ = sites
    with a.target() as target:
        guest = target.connect()
        token = target.control.call("seal")["seal"]
        assert target.control.call("seal")["seal"] == token
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(guest.pwrite, b"x", 0)
            assert not wait([written], timeout=0.2).done
            target.control.call("unseal")
            written.result(30)
        with b.proxy(target):
            wait_for(lambda: target.control.call("identify")["moved"], "the source to be told")
            with pytest.raises(RelocatorError, match="a proxy is active"):
                target.control.call("unseal")


def test_nobody_hangs_up_with_something_unread(sites: Any) -> None:
    """A reset would be all that the source hears of it, and a link may lose that."""
    a, b, c = sites
    with a.target() as target:
        guest = target.connect()
        with b.proxy(target, "mode=standby", "refresh=0.1") as first:
            rounds = first.status()["rounds"]
            guest.pwrite(b"x" * 4096, 0)
            wait_for(lambda: first.status()["rounds"] > rounds + 1, "some rounds")
            guest.shutdown()
            with c.proxy(target, "mode=standby") as second:
                first.control.call("activate", wait=True)
                with pytest.raises(RelocatorError, match="sealed for another proxy"):
                    second.control.call("activate", wait=True)
            first.wait()
        log = target.log.read_text()
        assert "reset" not in log and "Broken pipe" not in log


def test_a_seal_survives_the_targets_restart(sites: Any) -> None:
    a, _, _ = sites
    with a.target() as target:
        token = target.control.call("seal")["seal"]
        target.kill()
    with a.target() as target:
        assert target.status()["state"] == "sealed"
        assert target.control.call("identify")["seal"] == token
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(target.connect().pwrite, b"x", 0)
            assert not wait([written], timeout=0.2).done
            target.control.call("moved")
            with pytest.raises(nbd.Error, match="EPERM"):
                written.result(30)


def test_a_sealed_disk_refuses_to_return_from_a_stranger(sites: Any) -> None:
    a, _, c = sites
    c.image.write_bytes(source_bytes(SIZE_BYTES, seed=2))
    with a.target() as target:
        target.control.call("seal")
    with c.target() as stranger:
        said = refused(f"disk={a.image}", f"store={a.maps}", f"source={stranger.uri}")
    assert "is not the successor of the sealed disk" in said


def test_a_disk_goes_to_one_of_two_proxies(sites: Any) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target:
        with b.proxy(target, "mode=standby") as first, c.proxy(target, "mode=standby") as second:
            first.control.call("activate", wait=True)
            with pytest.raises(RelocatorError, match="sealed for another proxy"):
                second.control.call("activate", wait=True)
            wait_for(lambda: second.status()["state"] == "standby", "the second to give up")
            scribble(first.connect(), model, 10)
            first.wait()
            assert first.connect().pread(SIZE_BYTES, 0) == model


def test_a_disk_that_has_gone_to_one_proxy_is_refused_to_one_that_is_started_active(
    sites: Any,
) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target, b.proxy(target, "background=off") as first:
        second = f"store={c.directory / 'store'}", f"source={target.uri}"
        for _ in range(2):  # nothing of the first attempt is in the way of the second
            said = refused(*second, "mode=active")
            assert f"source={target.uri}: " in said
            assert "sealed for another proxy" in said
            assert "unseal --force" in said
        first.control.call("withdraw")
        with c.proxy(target, "mode=active") as proxy:
            scribble(proxy.connect(), model, 10)
            proxy.wait()
            assert proxy.connect().pread(SIZE_BYTES, 0) == model


def test_a_disk_that_has_moved_is_not_copied_ahead_for_another_proxy(sites: Any) -> None:
    a, b, c = sites
    with a.target() as target, b.proxy(target, "mode=standby") as first:
        first.control.call("activate", wait=True)
        wait_for(lambda: target.control.call("identify")["moved"], "the source to be told")
        epoch = target.status()["epoch"]
        said = refused(f"store={c.directory / 'store'}", f"source={target.uri}", "mode=standby")
        assert f"source={target.uri}: this disk has moved to another proxy" in said
        assert "give the site that has it" in said
        assert target.status()["epoch"] == epoch
        first.wait()
        with c.proxy(first, "mode=standby") as second:
            second.control.call("activate", wait=True)


@pytest.mark.parametrize("runs", [False, True])
def test_no_other_proxy_hides_what_was_written_at_a_source_that_forgot_its_seal(
    sites: Any, runs: bool
) -> None:
    a, b, c = sites
    disk = f"disk={a.image}"
    wanted = (f"store={b.directory / 'store'}", "retry-timeout=1")
    with ExitStack() as stack:
        target = stack.enter_context(plugin(a.directory, "target", disk))
        source = f"source={target.uri}"
        first = stack.enter_context(plugin(b.directory, "first", *wanted, source, "background=off"))
        wait_for(lambda: target.control.call("identify")["moved"], "the source to be told")
        first.process.send_signal(signal.SIGSTOP)
        target.kill()
        with plugin(a.directory, "target", disk) as again:
            again.connect().pwrite(b"x" * BLOCK, 100 * BLOCK)  # where no sample is taken
            with c.proxy(again, "mode=standby", "background=off"):
                assert again.status()["dirty_blocks"] == 0
            if runs:
                first.process.send_signal(signal.SIGCONT)
                why = "the source was written after the disk had moved here"
                wait_for(lambda: first.status()["error"] == why, "the first to find out")
            else:
                first.kill()
                assert "was written after the disk had moved" in refused(*wanted, source)
            first.kill()


def test_no_other_proxy_that_begins_hides_what_was_written_before_the_seal(
    sites: Any, tmp_path: Path
) -> None:
    a, b, c = sites
    asked, goes_on = tmp_path / "asked", tmp_path / "goes-on"
    file = mistaken(tmp_path, _SLOW_ANSWER.format(asked=asked, goes_on=goes_on))
    disk = f"disk={a.image}", f"store={a.maps}"
    with (
        plugin(a.directory, "target", *disk, file=file) as target,
        b.proxy(target, "mode=standby", "refresh=off") as first,
        ThreadPoolExecutor(1) as pool,
    ):
        wait_for(lambda: all_present(first), "the copy ahead")
        written = b"x" * BLOCK
        target.connect().pwrite(written, 0)
        switch = pool.submit(first.control.call, "activate", wait=True)
        wait_for(asked.exists, "the seal to be asked for")
        with c.proxy(target, "mode=standby", "background=off"):
            goes_on.touch()
            switch.result(30)
            assert first.connect().pread(BLOCK, 0) == written


def test_a_proxy_that_was_killed_while_it_began_goes_on_by_its_own_seal(sites: Any) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target:
        with b.proxy(target, "mode=active", "background=off"):
            pass
        path = b.directory / "store"
        found = metadata.read(path)
        assert found is not None
        seal = found.origin_seal
        assert seal is not None
        # as a kill would leave it: the source is sealed, its answer has not arrived
        unknown = {"origin_seal": None, "origin_samples": None, "untold": False, "clean": False}
        takeover = metadata.Takeover(seal)
        metadata.write(path, replace(found, standby=True, takeover=takeover, **unknown))
        assert "sealed for another proxy" in refused(
            f"store={c.directory / 'store'}", f"source={target.uri}", "mode=active"
        )
        with b.proxy(target, "mode=active") as proxy:
            wait_for(lambda: proxy.status()["state"] != "activating", "the activation")
            scribble(proxy.connect(), model, 11)
            proxy.wait()
            assert proxy.connect().pread(SIZE_BYTES, 0) == model
        assert metadata.read(path).origin_seal == seal
