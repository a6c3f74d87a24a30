"""What was written last comes with the seal: as if it had been copied ahead, and never instead of
what the guest writes at the destination."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.errors import UpstreamError
from relocator.source.endpoint import Endpoint
from relocator.source.remote import Source
from tests.support.model import source_bytes
from tests.support.servers import Server, mistaken, plugin, wait_for

SIZE_BYTES = 4 << 20
BLOCK = 4096
BRINGS = "seal-brings=256K"

#: a source that knows nothing of what may come with a seal
_OLD = """
import re
from relocator.running import verbs
verbs._ARGUMENTS["seal"] = re.compile("|[0-9a-f]{32}")
"""
#: a source whose blocks, but for those that fit in with the maps, come only once a file is there
_SLOW = """
import time as _time
from relocator.running.rest import Rest as _Rest
_read = _Rest.read_into
def _slow(self, buffer, offset):
    while offset and not Path(GO).exists():
        _time.sleep(0.01)
    _read(self, buffer, offset)
_Rest.read_into = _slow
"""
#: a source that lets who makes ready for a seal wait until it is told to, the first time
_LATE = """
import time as _time
from itertools import count as _count
from relocator.running.verbs import Verbs as _Verbs
_open, _opened = _Verbs.open_export, _count()  # several are opened at once
def _late(self, name, *admitted):
    if name.startswith("control/seal/") and next(_opened) == 0:
        Path(GO).write_text("asked")
        while Path(GO).read_text() == "asked":
            _time.sleep(0.01)
        Path(GO).write_text("opened")
    return _open(self, name, *admitted)
_Verbs.open_export = _late
"""
#: a source that says that the blocks are where its answer has ended already
_PAST = """
import json as _json
from relocator.running import exports as _exports
_encode = _exports.encode
def _past(reply):
    line, _, body = _encode(reply).partition(b"\\n")
    fields = _json.loads(line)
    if "rest" in fields["attachments"]:
        fields["attachments"]["rest"][0] = 100 << 20
    return _json.dumps(fields).encode() + b"\\n" + body
_exports.encode = _past
"""
#: a source that answers a guest's read of block 7 only once it is told to
_SILENT = """
import time as _time
from relocator.running.sessions import Session as _Session
_read = _Session.read_into
def _silent(self, buffer, offset):
    if (offset, len(buffer)) == (7 * 4096, 4096):
        Path(GO).write_text("asked")
        while Path(GO).read_text() == "asked":
            _time.sleep(0.01)
    _read(self, buffer, offset)
_Session.read_into = _silent
"""


class Site:
    """The source: its image, its target, and what the disk should hold."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "a"
        self.directory.mkdir()
        self.model = source_bytes(SIZE_BYTES)
        (self.directory / "disk.img").write_bytes(self.model)
        self._go = self.directory / "go"

    def serve(self, *keys: str, mistake: str = "", filters: tuple[str, ...] = ()) -> Any:
        """Its target, with a mistake put in, behind filters of nbdkit's."""
        wanted = (f"disk={self.directory / 'disk.img'}", f"store={self.directory / 'maps'}")
        file = mistaken(self.directory, mistake.replace("GO", repr(str(self._go))))
        flags = ("-t", "1", *(f"--filter={name}" for name in filters))
        return plugin(self.directory, "target", *wanted, *keys, flags=flags, file=file)

    def go_on(self) -> None:
        self._go.write_text("go on")

    def has(self, what: str) -> bool:
        """Whether that has come of making ready for a seal."""
        return self._go.exists() and self._go.read_text() == what

    def write(self, handle: Any, block: int, blocks: int = 1) -> None:
        """The guest writes whole blocks, everywhere it is."""
        data = bytes([1 + block % 255]) * (blocks * BLOCK)
        handle.pwrite(data, block * BLOCK)
        self.model[block * BLOCK : block * BLOCK + len(data)] = data


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@contextmanager
def in_step(tmp_path: Path, target: Server | str, *keys: str, **more: Any) -> Iterator[Server]:
    """A proxy in standby with all copied ahead, which from now on copies nothing by itself.

    How much may come is told: a size of its own choice it would take a moment after the copy.
    """
    uri = target if isinstance(target, str) else target.uri
    wanted = (f"store={tmp_path / 'store'}", f"source={uri}", "mode=standby", "refresh=off")
    keys = keys if any(key.startswith("seal-brings=") for key in keys) else (*keys, BRINGS)
    with plugin(tmp_path, "proxy", *wanted, *keys, **more) as proxy:
        try:
            wait_for(lambda: absent(proxy) == 0, "the copy ahead")
            proxy.control.call("pause")
            yield proxy
        except BaseException:
            proxy.kill()  # its clients may wait for ever
            raise


def absent(proxy: Server) -> int:
    status = proxy.status()
    return int(status["total_blocks"] - status["present_blocks"])


def test_a_disk_that_was_in_step_is_complete_by_the_seal_alone(tmp_path: Path, site: Site) -> None:
    with site.serve() as target, in_step(tmp_path, target) as proxy:
        guest = target.connect()
        for block in (3, 4, 90, 500, 1023):
            site.write(guest, block)
        before = proxy.status()
        after = proxy.control.call("activate", wait=True)
        assert after["dropped_blocks"] == 5
        done = proxy.wait()
        assert done["brought_bytes"] == 5 * BLOCK
        assert done["background_bytes"] == before["background_bytes"] + 5 * BLOCK
        assert done["on_demand_bytes"] == 0
        guest.shutdown()
        assert target.end(20) == 0, "nothing holds the source's server back"
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_a_read_that_waits_for_the_source_is_answered_though_the_disk_completes_meanwhile(
    tmp_path: Path, site: Site
) -> None:
    read: list[bytes | str] = []

    def reads(handle: Any) -> None:
        try:
            read.append(bytes(handle.pread(BLOCK, 7 * BLOCK)))
        except nbd.Error as error:
            read.append(str(error))

    with site.serve(mistake=_SILENT) as target, in_step(tmp_path, target) as proxy:
        try:
            reader = threading.Thread(target=reads, args=(proxy.connect(),), daemon=True)
            reader.start()
            wait_for(lambda: site.has("asked"), "the read")
            proxy.control.call("activate", wait=True)
            proxy.wait()
            reader.join(20)
        finally:
            site.go_on()
        assert read == [site.model[7 * BLOCK : 8 * BLOCK]]


def test_what_is_still_on_its_way_at_the_end_is_taken_before_hanging_up(
    tmp_path: Path, site: Site
) -> None:
    """Else the source's server, which can't send it any more, hears of a reset, if it does."""
    with site.serve(mistake=_SILENT) as target:
        wanted = (f"store={tmp_path / 'store'}", f"source={target.uri}", "background=off")
        with plugin(tmp_path, "proxy", *wanted) as proxy, ThreadPoolExecutor(1) as pool:
            reader = pool.submit(proxy.connect().pread, BLOCK, 7 * BLOCK)
            wait_for(lambda: site.has("asked"), "the read")
            proxy.control.call("set", background="on")
            wait_for(lambda: absent(proxy) == 1, "all the others")
            site.write(proxy.connect(), 7)
            wait_for(lambda: absent(proxy) == 0, "the write")
            site.go_on()
            assert reader.result(20) == site.model[7 * BLOCK : 8 * BLOCK]
            proxy.wait()
        log = target.log.read_text()
        assert "reset" not in log and "Broken pipe" not in log
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_what_becomes_ready_too_late_does_not_hold_the_source_back(
    tmp_path: Path, site: Site
) -> None:
    with site.serve(mistake=_LATE) as target, in_step(tmp_path, target) as proxy:
        wait_for(lambda: site.has("asked"), "the connection for the seal")
        proxy.control.call("activate", wait=True)
        proxy.wait()
        site.go_on()
        wait_for(lambda: site.has("opened"), "that connection to be ready")
        time.sleep(0.5)  # until both ends have it
        assert target.end(20) == 0
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


@pytest.mark.parametrize(("theirs", "ours"), [("4K", "16K"), ("64K", "4K")])
def test_blocks_of_another_size_come_as_far_as_they_are_whole(
    tmp_path: Path, site: Site, theirs: str, ours: str
) -> None:
    with site.serve(f"block={theirs}") as target:
        with in_step(tmp_path, target, f"block={ours}", "seal-brings=1M") as proxy:
            guest = target.connect()
            site.write(guest, 5)  # a part of a block of 16K
            site.write(guest, 94, 20)
            proxy.control.call("activate", wait=True)
            brought = (4 * 4 << 12) if theirs == "4K" else 4 << 16
            wait_for(lambda: proxy.status()["brought_bytes"] == brought, "what comes")
            if theirs == "4K":
                assert absent(proxy) == 3  # parts of blocks
                proxy.control.call("resume")
            proxy.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_no_more_comes_than_was_asked_for_the_hottest_first(tmp_path: Path, site: Site) -> None:
    with site.serve() as target, in_step(tmp_path, target, "seal-brings=20K") as proxy:
        guest = target.connect()
        site.write(guest, 10, 5)
        site.write(guest, 680, 5)
        for _ in range(200):  # the copy read, too
            guest.pread(BLOCK, 684 * BLOCK)
        proxy.control.call("activate", wait=True)
        wait_for(lambda: absent(proxy) == 5, "what comes")
        shares = proxy.control.call("map", cells=1024)["map"]["present"]
        assert [at for at, share in enumerate(shares) if share == 0] == [10, 11, 12, 13, 14]
        proxy.control.call("resume")
        proxy.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_nothing_comes_if_nothing_may(tmp_path: Path, site: Site) -> None:
    with site.serve() as target, in_step(tmp_path, target, "seal-brings=0") as proxy:
        site.write(target.connect(), 7)
        proxy.control.call("activate", wait=True)
        assert (absent(proxy), proxy.status()["brought_bytes"]) == (1, 0)
        assert proxy.connect().pread(SIZE_BYTES, 0) == site.model


def test_a_source_of_an_older_version_is_sealed_all_the_same(tmp_path: Path, site: Site) -> None:
    with site.serve(mistake=_OLD) as target, in_step(tmp_path, target) as proxy:
        with pytest.raises(UpstreamError):
            Source(Endpoint(target.uri)).prepare(f"seal/{'0' * 32}/4096")
        site.write(target.connect(), 7)
        proxy.control.call("activate", wait=True)
        assert (absent(proxy), proxy.status()["brought_bytes"]) == (1, 0)
        assert proxy.connect().pread(SIZE_BYTES, 0) == site.model


def test_the_guest_writes_before_what_comes_has_come_and_its_write_stays(
    tmp_path: Path, site: Site
) -> None:
    with site.serve(mistake=_SLOW) as target, in_step(tmp_path, target) as proxy:
        guest = target.connect()
        site.write(guest, 40, 10)
        proxy.control.call("activate", wait=True)
        here = proxy.connect()
        site.model[43 * BLOCK : 45 * BLOCK] = b"m" * (2 * BLOCK)
        here.pwrite(b"m" * (2 * BLOCK), 43 * BLOCK)  # waits for none of it
        assert absent(proxy) == 8
        site.go_on()
        done = proxy.wait()
        assert (done["dropped_blocks"], done["brought_bytes"]) == (10, 10 * BLOCK)
        assert here.pread(SIZE_BYTES, 0) == site.model
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_what_does_not_come_is_fetched(tmp_path: Path, site: Site) -> None:
    with site.serve(mistake=_SLOW) as target, in_step(tmp_path, target) as proxy:
        site.write(target.connect(), 40, 10)
        proxy.control.call("activate", wait=True)
        target.kill()
        with site.serve() as again:
            assert proxy.connect().pread(SIZE_BYTES, 0) == site.model
            assert proxy.status()["brought_bytes"] == 0
            again.kill()  # rather than to wait for its client
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_what_is_said_to_come_where_the_answer_has_ended_is_fetched(
    tmp_path: Path, site: Site
) -> None:
    with site.serve(mistake=_PAST) as target, in_step(tmp_path, target) as proxy:
        site.write(target.connect(), 40, 10)
        proxy.control.call("activate", wait=True)
        proxy.control.call("resume")
        done = proxy.wait(20)
        assert (done["dropped_blocks"], done["brought_bytes"]) == (10, 0)
        assert proxy.connect().pread(SIZE_BYTES, 0) == site.model


def test_a_proxy_that_dies_before_it_has_come_asks_for_it_again(tmp_path: Path, site: Site) -> None:
    with site.serve(mistake=_SLOW) as target:
        with in_step(tmp_path, target) as proxy:
            site.write(target.connect(), 40, 10)
            proxy.control.call("activate", hold=True, wait=True)  # nothing was written here yet
            proxy.kill()
        site.go_on()
        wanted = (f"store={tmp_path / 'store'}", f"source={target.uri}", "background=off")
        with plugin(tmp_path, "proxy", *wanted) as proxy:
            proxy.control.call("release")
            proxy.wait()
            assert proxy.status()["brought_bytes"] == 10 * BLOCK
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_what_came_with_a_seal_that_was_withdrawn_is_dropped_where_it_is_stale(
    tmp_path: Path, site: Site
) -> None:
    with site.serve(mistake=_SLOW) as target, in_step(tmp_path, target) as proxy:
        guest = target.connect()
        site.write(guest, 40, 10)
        proxy.control.call("activate", hold=True, wait=True)
        site.go_on()
        proxy.control.call("withdraw")
        guest.pwrite(b"later" * 1000, 41 * BLOCK)
        site.model[41 * BLOCK : 41 * BLOCK + 5000] = b"later" * 1000
        proxy.control.call("activate", wait=True)
        proxy.wait()
        assert proxy.connect().pread(SIZE_BYTES, 0) == site.model
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model
