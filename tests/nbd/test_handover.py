"""Authority over a disk moving from site to site, with real servers at each."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.copying import heat
from relocator.errors import RelocatorError, StateError
from relocator.source.endpoint import Endpoint
from relocator.source.remote import Source
from tests.support.model import source_bytes
from tests.support.servers import Server, mistaken, nbdkit, plugin, refused, wait_for
from tests.support.sites import BLOCK, SIZE_BYTES, scribble

#: ends as soon as it is told that its disk has moved
_DEAF = """
import os as _os
from relocator.running.handover import Handover as _Handover
_Handover.moved = lambda self, token: _os._exit(1)
"""


def all_present(server: Server) -> bool:
    status = server.status()
    return bool(status["present_blocks"] == status["total_blocks"])


def test_preseed_drops_what_was_written_at_the_source_meanwhile(sites: Any) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target, b.proxy(target, "mode=standby", "refresh=off") as proxy:
        guest, there = target.connect(), proxy.connect()
        scribble(guest, model, 1)
        wait_for(lambda: all_present(proxy), "the pre-seed")
        scribble(guest, model, 2)
        assert there.pread(SIZE_BYTES, 0) == model  # standby reads are the source's, never stale
        with pytest.raises(nbd.Error, match="EPERM"):
            there.pwrite(b"too early", 0)
        before = proxy.status()
        after = proxy.control.call("activate", wait=True)
        assert 0 < after["dropped_blocks"] < 320
        wait_for(lambda: target.control.call("identify")["moved"], "the source to be told")
        with pytest.raises(nbd.Error, match="EPERM"):
            guest.pwrite(b"too late", 0)
        scribble(there, model, 3)
        done = proxy.wait()
        assert there.pread(SIZE_BYTES, 0) == model
        fetched = "background_bytes", "on_demand_bytes"
        refetched = sum(done[name] - before[name] for name in fetched)
        assert refetched <= after["dropped_blocks"] * BLOCK + 80 * BLOCK
    assert b.copy.read_bytes() == model


def test_a_refresh_in_standby_leaves_little_for_the_switch(sites: Any) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target, b.proxy(target, "mode=standby", "refresh=off") as proxy:
        guest = target.connect()
        wait_for(lambda: all_present(proxy), "the copy ahead")
        scribble(guest, model, 1)
        refreshed = proxy.control.call("refresh")
        assert 0 < refreshed["refreshed_blocks"] < 320
        wait_for(lambda: all_present(proxy), "what was written meanwhile")
        scribble(guest, model, 2, count=1)
        proxy.control.call("activate", wait=True)
        assert proxy.control.call("status")["dropped_blocks"] <= 4
        proxy.control.call("wait", timeout_s=60)
        assert proxy.connect().pread(SIZE_BYTES, 0) == model
    assert b.copy.read_bytes() == model


def test_a_refresh_that_the_proxy_did_not_live_to_note_costs_the_copy_not_the_data(
    sites: Any,
) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target:
        with b.proxy(target, "mode=standby", "refresh=off") as proxy:
            wait_for(lambda: all_present(proxy), "the copy ahead")
            scribble(target.connect(), model, 1)
            proxy.kill()
            target.control.call("epoch")  # all that came of the refresh
        with b.proxy(target, "mode=standby", "refresh=off") as proxy:
            proxy.control.call("activate", wait=True)
            assert proxy.connect().pread(SIZE_BYTES, 0) == model


def test_the_return_trip_takes_back_only_what_diverged(sites: Any) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target, b.proxy(target) as proxy:
        proxy.wait()
        scribble(proxy.connect(), model, 5, count=10)
        diverged = proxy.status()["dirty_blocks"]
    home = (f"disk={a.image}", f"store={a.maps}")
    with plugin(b.directory, "proxy", f"store={b.directory / 'store'}") as away:
        with plugin(a.directory, "home", *home, f"source={away.uri}", "mode=standby") as proxy:
            scribble(away.connect(), model, 6, count=5)
            wait_for(lambda: all_present(proxy), "the pre-seed")
            proxy.control.call("activate")
            status = proxy.wait()
            moved = status["background_bytes"] + status["on_demand_bytes"]
            assert 0 < moved <= (diverged + 2 * 5 * 4) * BLOCK
            assert status["hole_bytes"] == 0
            assert proxy.connect().pread(SIZE_BYTES, 0) == model
    assert a.image.read_bytes() == model


def test_of_a_disk_that_has_moved_on_only_the_last_site_s_store_can_return(sites: Any) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target, b.proxy(target) as middle:
        middle.wait()
        with c.proxy(middle) as last:
            last.wait()
            scribble(last.connect(), model, 6, count=10)
    home = (f"disk={a.image}", f"store={a.maps}")
    between = f"store={b.directory / 'store'}"
    with plugin(c.directory, "last", f"store={c.directory / 'store'}") as last:
        assert "not the successor of the sealed disk" in refused(*home, f"source={last.uri}")
        with plugin(b.directory, "middle", between, f"source={last.uri}") as middle:
            status = middle.wait()
            assert 0 < status["background_bytes"] + status["on_demand_bytes"] < SIZE_BYTES // 2
            assert "not the successor of the sealed" in refused(*home, f"source={middle.uri}")
            empty = f"store={a.directory / 'empty'}"
            with plugin(a.directory, "home", empty, f"source={middle.uri}") as proxy:
                proxy.wait()
                assert proxy.connect().pread(SIZE_BYTES, 0) == model


@pytest.mark.parametrize(("there", "here"), [("512", "64K"), ("64K", "512"), ("16K", "auto")])
def test_sites_whose_blocks_differ_understand_each_other(sites: Any, there: str, here: str) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    home = (f"disk={a.image}", f"store={a.maps}")
    with plugin(a.directory, "target", *home, f"block={there}") as target:
        with b.proxy(target, "mode=standby", f"block={here}", "refresh=off") as proxy:
            same = proxy.status()["block_bytes"] == target.status()["block_bytes"]
            assert same == (here == "auto")  # a relocator's block is taken over
            wait_for(lambda: all_present(proxy), "the pre-seed")
            scribble(target.connect(), model, 11, count=8)
            dropped = proxy.control.call("activate", wait=True)
            assert 0 < dropped["dropped_blocks"] * dropped["block_bytes"] < SIZE_BYTES // 2
            proxy.wait()
            assert proxy.connect().pread(SIZE_BYTES, 0) == model
            proof = proxy.control.call("verify")
            assert proof["verified_blocks"] == dropped["total_blocks"]
            scribble(proxy.connect(), model, 12, count=8)
    with plugin(b.directory, "proxy", f"store={b.directory / 'store'}") as away:
        with plugin(a.directory, "home", *home, f"source={away.uri}") as proxy:
            status = proxy.wait()
            moved = status["background_bytes"] + status["on_demand_bytes"]
            assert 0 < moved < SIZE_BYTES // 2
    assert a.image.read_bytes() == model


def test_a_chain_of_sites_works_before_the_middle_is_complete(sites: Any) -> None:
    a, b, c = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target, b.proxy(target, "background=off") as middle:
        scribble(middle.connect(), model, 7)
        with c.proxy(middle, "background=off") as last:
            scribble(last.connect(), model, 8)
            assert middle.status()["state"] == "relaying"
            for proxy in (middle, last):
                proxy.control.call("set", background="on")
            last.wait()
            middle.wait()
            assert middle.status()["state"] == "sealed"
            assert last.connect().pread(SIZE_BYTES, 0) == model
    assert c.copy.read_bytes() == model


def test_the_first_write_activates_where_that_was_asked_for(sites: Any) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target, b.proxy(target, "mode=standby", "activate-on-write=yes") as proxy:
        scribble(proxy.connect(), model, 9)
        assert proxy.status()["state"] != "standby"
        assert target.status()["state"] == "sealed"
        proxy.wait()
    assert b.copy.read_bytes() == model


@pytest.mark.parametrize("how", ["withdrawn", "not sealed"])
def test_a_write_that_waits_does_not_take_back_what_was_given_back(sites: Any, how: str) -> None:
    a, b, _ = sites
    keys = ("mode=standby", "activate-on-write=yes", "retry-timeout=1")
    with a.target() as target, b.proxy(target, *keys) as proxy:
        proxy.control.call("activate", hold=True, seal=False)
        failures: list[str] = []
        writer = threading.Thread(target=_write, args=(proxy.connect(), failures))
        writer.start()
        time.sleep(0.3)  # it waits; should it come later, it finds the same
        if how == "withdrawn":
            proxy.control.call("activate", hold=True)
            wait_for(lambda: proxy.status()["seal_confirmed"], "the seal")
            proxy.control.call("withdraw")
        else:
            target.kill()
            proxy.control.call("activate", hold=True)
        writer.join()
        assert "EPERM" in failures[0]
        _write(proxy.connect(), failures)
        assert len(failures) == 2  # nor does the next one
        assert proxy.status()["state"] == "standby"
        if how == "withdrawn":
            target.connect().pwrite(b"the guest goes on here", 0)
            assert target.status()["state"] == "complete"
            proxy.control.call("activate")
            _write(proxy.connect(), failures)
            assert len(failures) == 2


def _write(handle: Any, failures: list[str]) -> None:
    try:
        handle.pwrite(b"Z" * BLOCK, 0)
    except nbd.Error as error:
        failures.append(str(error))


def test_a_proxy_that_is_started_anew_activates_by_a_write_again(sites: Any) -> None:
    a, b, _ = sites
    keys = ("mode=standby", "activate-on-write=yes")
    with a.target() as target:
        with b.proxy(target, *keys) as proxy:
            proxy.control.call("withdraw")
            with pytest.raises(nbd.Error, match="EPERM"):
                proxy.connect().pwrite(b"not yet", 0)
        with b.proxy(target, *keys) as proxy:
            proxy.connect().pwrite(b"now", 0)
            assert target.status()["state"] == "sealed"


def test_verify_proves_the_copy_and_finds_a_damaged_block(sites: Any) -> None:
    a, b, _ = sites
    with a.target() as target, b.proxy(target) as proxy:
        handle = proxy.connect()
        proxy.wait()
        handle.pwrite(b"newer on purpose", 0)
        proof = proxy.control.call("verify")
        assert proof["verified_blocks"] == SIZE_BYTES // BLOCK - 1
        with b.copy.open("r+b") as image:
            image.seek(77 * BLOCK + 5)
            image.write(b"!")
        with pytest.raises(RelocatorError, match=r"1 of 1023 blocks differ.*the first is 77"):
            proxy.control.call("verify")


def test_verify_says_in_its_own_words_that_the_source_is_off(sites: Any) -> None:
    a, b, _ = sites
    with a.target() as target, b.proxy(target) as proxy:
        proxy.wait()
        target.kill()
        with pytest.raises(RelocatorError, match="nothing is proven") as told:
            proxy.control.call("verify")
        said = str(told.value)
        assert f"the source {target.uri} can't be read (connect: Connection refused)" in said
        assert "start it, and verify again" in said
        assert "nbd_" not in said.replace(target.uri, "")
        assert proxy.status()["state"] == "complete"


def test_a_source_that_is_not_ours_offers_blocks_only(sites: Any) -> None:
    a, b, _ = sites
    content = source_bytes(SIZE_BYTES)
    with nbdkit(a.directory, "foreign", ["file", str(a.image)]) as source:
        with b.proxy(source, "mode=standby") as proxy:
            status = proxy.status()
            assert (status["source_offers"], status["background"]) == ("blocks", "off")
            assert proxy.connect().pread(SIZE_BYTES, 0) == content
            assert proxy.status()["present_blocks"] == 0
            proxy.control.call("activate")
            proxy.wait()
    assert b.copy.read_bytes() == content
    assert a.image.read_bytes() == content  # nothing was written to it as a way of asking


def test_a_proxy_refuses_a_source_that_is_another_disk(sites: Any) -> None:
    a, b, c = sites
    c.image.write_bytes(source_bytes(SIZE_BYTES, seed=2))
    with a.target() as target, b.proxy(target, "background=off") as proxy:
        proxy.connect().pread(BLOCK, 0)
    with c.target() as other:
        said = refused(f"store={b.directory / 'store'}", f"source={other.uri}")
    assert "is not the disk that the store" in said


@pytest.mark.parametrize("mode", ["standby", "active"])
def test_nothing_returns_from_a_successor_that_still_reads_from_here(sites: Any, mode: str) -> None:
    a, b, _ = sites
    with a.target() as target, b.proxy(target, "background=off") as away:
        target.kill()
        home = (f"disk={a.image}", f"store={a.maps}", f"source={away.uri}")
        assert "is not complete yet" in refused(*home, f"mode={mode}")


def test_heat_is_counted_and_handed_over(sites: Any) -> None:
    from array import array

    a, b, _ = sites
    with a.target() as target:
        guest = target.connect()
        for _ in range(50):
            guest.pread(BLOCK, 3 << 20)
        heat = target.connect("heat")
        values = array("f", heat.pread(heat.get_size(), 0))
        assert {n: round(value) for n, value in enumerate(values) if value} == {12: 50}
        with b.proxy(target, "order=hot", "rate=1M"):
            pass


def test_further_exports_are_listed_and_read_only(sites: Any) -> None:
    a, _, _ = sites
    with a.target() as target:
        names: list[str] = []
        lister = nbd.NBD()
        lister.set_opt_mode(True)
        lister.connect_unix(str(target.socket))
        lister.opt_list(lambda name, _description: names.append(name) or 0)
        lister.opt_abort()
        maps = ["recent", "heat", "write-heat", "dirty", "diverged", "skipped"]
        assert names == ["", *maps, "digest", "digests/4096", "control"]
        assert (control := target.connect("control")).is_read_only()
        assert b'"role": "target"' in control.pread(control.get_size(), 0)
        with pytest.raises(nbd.Error):
            target.connect("no-such-export")


def test_an_epoch_whose_answer_was_lost_is_answered_again(sites: Any) -> None:
    a, _, _ = sites
    with a.target() as target:
        guest, proxy = target.connect(), Source(Endpoint(target.uri))
        guest.pwrite(b"first", 7 * BLOCK)
        began = proxy.call("epoch")["epoch"]
        guest.pwrite(b"second", 9 * BLOCK)
        lost = proxy.call(f"epoch/{began}")
        assert (lost["epoch"], lost.map("ended", SIZE_BYTES // BLOCK)) == (began + 1, [(9, 10)])
        guest.pwrite(b"third", 11 * BLOCK)
        assert proxy.call(f"epoch/{began}").attachments == lost.attachments
        later = proxy.call(f"epoch/{began + 1}")
        assert later.map("ended", SIZE_BYTES // BLOCK) == [(11, 12)]
        assert proxy.call(f"epoch/{began + 2}")["epoch"] == began + 2  # nothing was written
        assert proxy.call(f"epoch/{began + 1}").attachments == later.attachments
        guest.pwrite(b"fourth", 13 * BLOCK)
        proxy.call("seal")
        with pytest.raises(StateError, match="'epoch' is refused: the disk is sealed"):
            proxy.call(f"epoch/{began + 2}")


def test_writes_are_counted_for_themselves(sites: Any) -> None:
    a, _, _ = sites
    with a.target() as target:
        guest = target.connect()
        guest.pread(BLOCK, 0)
        for _ in range(5):
            guest.pwrite(b"again", 3 << 20)
        values = heat.unpack(
            Source(Endpoint(target.uri)).export("write-heat", heat.MOST_PACKED_BYTES)
        )
        assert {at: round(value) for at, value in enumerate(values) if value} == {12: 5}


def test_a_source_that_takes_the_disk_back_has_heard_that_it_moved(
    sites: Any, tmp_path: Path
) -> None:
    a, b, _ = sites
    with ExitStack() as running:
        file = mistaken(tmp_path, _DEAF)
        wanted = (f"disk={a.image}", f"store={a.maps}")
        source = running.enter_context(plugin(a.directory, "target", *wanted, file=file))
        proxy = running.enter_context(b.proxy(source, "mode=standby"))
        wait_for(lambda: all_present(proxy), "the copy ahead")
        proxy.control.call("activate", wait=True)
        source.process.wait(30)
        wait_for(lambda: proxy.status()["error"] is not None, "the word that it can't be told")
        back = (*wanted, f"source={proxy.uri}", "mode=standby")
        running.enter_context(plugin(a.directory, "target", *back))
        wait_for(lambda: proxy.status()["error"] is None, "it to be told", 60.0)
        assert proxy.status()["state"] == "complete"
