"""What was written last comes with the seal in parts, each over a connection of its own."""

import random
import threading
import time
from pathlib import Path

import pytest

from relocator.errors import RelocatorError
from relocator.running.sealing import LEAST_PARTS
from relocator.source.endpoint import Endpoint
from relocator.source.remote import Source
from tests.nbd.test_rest import BLOCK, SIZE_BYTES, Site, absent, in_step
from tests.support.servers import Server, impatient, wait_for
from tests.support.sources import Relay

#: one for demand, five that bring a part each
SIX = "connections=6"

#: a source that notes for how many parts of how many somebody has made ready
_NOTING = """
import threading as _threading
from relocator.running.verbs import Verbs as _Noting
_open, _parts, _noting = _Noting.open_export, set(), _threading.Lock()
def _note(self, name, *admitted):
    opened = _open(self, name, *admitted)
    if name.count("/") == 5:
        part, of = name.split("/")[4:]
        with _noting:
            _parts.add((part, of))
            Path(GO).write_text(f"{sum(one[1] == of for one in _parts)} of {of}")
    return opened
_Noting.open_export = _note
"""
#: a source that knows nothing of parts
_OLD = """
import re
from relocator.running import verbs
verbs._ARGUMENTS["seal"] = re.compile("|[0-9a-f]{32}(/[0-9]{1,9})?")
"""
#: a source that chooses anew for every part, and never the same
_FICKLE = """
from relocator.running import rest
from relocator.running.verbs import Verbs as _Verbs
def _choose(self, argument):
    part, _ = rest.part_of(argument)
    return rest.select(self._parts.store, self._parts.heat, self._holds, (40 - part) * 4096)
_Verbs._choose = _choose
"""
#: a source that can't read what two of the parts are of
_FAILING = """
from relocator.running.rest import Part as _Part
_read = _Part.read_into
def _fail(self, buffer, offset):
    if 8 * 4096 <= self._at < 24 * 4096:
        raise OSError(5, "planted")
    _read(self, buffer, offset)
_Part.read_into = _fail
"""
#: a source that says nothing of any part but the first until it is told to, or for half a second
_MUTE = """
import time as _time
from relocator.running.rest import Part as _Part
_read = _Part.read_into
def _wait(self, buffer, offset):
    give_up_s = _time.monotonic() + PATIENCE_S
    while self._at and _time.monotonic() < give_up_s and Path(GO).read_text() != "go on":
        _time.sleep(0.01)
    _read(self, buffer, offset)
_Part.read_into = _wait
"""
TOKEN = "ab" * 16


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def ends(target: Server) -> None:
    """Whether nothing holds the source's server back."""
    assert target.end(20) == 0


def resets(target: Server) -> list[str]:
    """What the source's server says of those who hung up with something unread."""
    log = target.log.read_text().splitlines()
    return [line for line in log if "reset" in line or "Broken pipe" in line]


@pytest.mark.parametrize("brings", ["4M", "1996K"])
def test_many_parts_are_one_rest(tmp_path: Path, site: Site, brings: str) -> None:
    keys = SIX, f"seal-brings={brings}"
    with site.serve(mistake=_NOTING) as target, in_step(tmp_path, target, *keys) as proxy:
        wait_for(lambda: site.has("5 of 5"), "all connections for the seal")
        guest = target.connect()
        blocks = random.Random(7).sample(range(SIZE_BYTES // BLOCK), 499)
        for block in blocks:
            site.write(guest, block)
        proxy.control.call("activate", wait=True)
        done = proxy.wait()
        assert (done["brought_bytes"], done["on_demand_bytes"]) == (499 * BLOCK, 0)
        guest.shutdown()
        ends(target)
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_over_tcp_some_parts_are_made_ready_though_the_copy_has_one_connection(
    tmp_path: Path, site: Site
) -> None:
    with site.serve(mistake=_NOTING) as target:
        relay = Relay(target.socket)
        with in_step(tmp_path, f"nbd://127.0.0.1:{relay.port}", "connections=2") as proxy:
            wait_for(lambda: site.has(f"{LEAST_PARTS} of {LEAST_PARTS}"), "the seal's connections")
            guest = target.connect()
            for block in (3, 50, 51, 200):
                site.write(guest, block)
            proxy.control.call("activate", wait=True)
            done = proxy.wait()
            assert (done["brought_bytes"], done["on_demand_bytes"]) == (4 * BLOCK, 0)
        relay.close()
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


@pytest.mark.parametrize(("theirs", "ours", "whole"), [("4K", "16K", 40), ("64K", "4K", 64)])
def test_blocks_of_another_size_lie_across_parts(
    tmp_path: Path, site: Site, theirs: str, ours: str, whole: int
) -> None:
    with site.serve(f"block={theirs}", mistake=_NOTING) as target:
        with in_step(tmp_path, target, f"block={ours}", SIX, "seal-brings=1M") as proxy:
            wait_for(lambda: site.has("5 of 5"), "all connections for the seal")
            site.write(target.connect(), 94, 43)
            proxy.control.call("activate", wait=True)
            wait_for(lambda: proxy.status()["brought_bytes"] == whole * BLOCK, "what comes")
            if theirs == "4K":  # parts of blocks of ours
                proxy.control.call("resume")
            proxy.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_a_source_that_has_no_parts_brings_all_in_one(tmp_path: Path, site: Site) -> None:
    with site.serve(mistake=_OLD) as target, in_step(tmp_path, target, SIX) as proxy:
        site.write(target.connect(), 7, 12)
        proxy.control.call("activate", wait=True)
        assert proxy.wait()["brought_bytes"] == 12 * BLOCK
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


@pytest.mark.parametrize("mistake", [_FICKLE, _FAILING])
def test_a_part_that_is_not_of_this_rest_or_fails_is_fetched(
    tmp_path: Path, site: Site, mistake: str
) -> None:
    keys = SIX, "seal-brings=160K"
    with site.serve(mistake=mistake + _NOTING) as target, in_step(tmp_path, target, *keys) as proxy:
        wait_for(lambda: site.has("5 of 5"), "all connections for the seal")
        guest = target.connect()
        site.write(guest, 300, 40)
        proxy.control.call("activate", wait=True)
        came = 8 if mistake == _FICKLE else 24

        wait_for(lambda: absent(proxy) == 40 - came, "what comes")
        assert proxy.status()["brought_bytes"] == came * BLOCK
        assert proxy.connect().pread(SIZE_BYTES, 0) == site.model
        proxy.wait()
        guest.shutdown()
        ends(target)
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_a_source_that_was_started_again_is_made_ready_anew(tmp_path: Path, site: Site) -> None:
    keys = SIX, "seal-brings=4M"
    with site.serve(mistake=_NOTING) as target, in_step(tmp_path, target, *keys) as proxy:
        wait_for(lambda: site.has("5 of 5"), "all connections for the seal")
        target.kill()
        site.go_on()
        with site.serve(mistake=_NOTING) as again:
            wait_for(lambda: site.has("5 of 5"), "all connections for the seal")
            guest = again.connect()
            site.write(guest, 300, 400)
            proxy.control.call("activate", wait=True)
            assert proxy.wait()["brought_bytes"] == 400 * BLOCK
            guest.shutdown()
            ends(again)
            assert resets(again) == []
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_where_the_parts_connections_have_died_all_comes_over_one(site: Site) -> None:
    verbs = [f"seal/{TOKEN}/163840/{part}/5" for part in range(5)]
    with site.serve() as target:
        source = Source(Endpoint(target.uri))
        source.prepare(*verbs)
        assert source.is_ready(*verbs)
        assert not source.is_ready(*verbs, f"moved/{TOKEN}")
        target.kill()
        assert not source.is_ready(verbs[3])
        with site.serve() as again:
            guest = again.connect()
            site.write(guest, 300, 40)
            answer = source.call(f"seal/{TOKEN}/163840", 163840, verbs)
            assert answer.rest(0, 40 * BLOCK, int) == site.model[300 * BLOCK : 340 * BLOCK]
            answer.end(int)
            source.unprepare()
            guest.shutdown()
            ends(again)


def test_a_seal_that_is_refused_leaves_no_part_unread(tmp_path: Path, site: Site) -> None:
    with site.serve(mistake=_NOTING) as target, in_step(tmp_path, target, SIX) as proxy:
        wait_for(lambda: site.has("5 of 5"), "all connections for the seal")
        Source(Endpoint(target.uri)).call(f"seal/{TOKEN}")
        with pytest.raises(RelocatorError, match="sealed for another proxy"):
            proxy.control.call("activate", wait=True)
        proxy.stop()
        ends(target)
        assert resets(target) == []


def test_a_part_that_never_comes_holds_nobody_back(tmp_path: Path, site: Site) -> None:
    mistake, file = _NOTING + _MUTE.replace("PATIENCE_S", "60"), impatient(tmp_path)
    with site.serve(mistake=mistake) as target, in_step(tmp_path, target, SIX, file=file) as proxy:
        guest = target.connect()
        wait_for(lambda: site.has("5 of 5"), "all connections for the seal")
        site.write(guest, 300, 40)
        proxy.control.call("activate", wait=True)
        proxy.control.call("resume")
        proxy.wait()
        site.go_on()
        guest.shutdown()
        time.sleep(0.5)  # until the source has answered those that don't wait any more
        ends(target)
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_what_still_comes_at_the_end_is_taken(tmp_path: Path, site: Site) -> None:
    mistake = _NOTING + _MUTE.replace("PATIENCE_S", "60.0")
    with site.serve(mistake=mistake) as target, in_step(tmp_path, target, SIX) as proxy:
        guest = target.connect()
        wait_for(lambda: site.has("5 of 5"), "all connections for the seal")
        site.write(guest, 300, 40)
        proxy.control.call("activate", wait=True)
        assert absent(proxy) > 0
        goes_on = threading.Timer(0.5, site.go_on)
        goes_on.start()
        proxy.stop()
        goes_on.join()
        guest.shutdown()
        ends(target)
        assert resets(target) == []
