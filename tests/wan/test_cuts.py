"""The WAN is cut while guests read and the background copy runs."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.support.link import SOURCE_ADDRESS, Link
from tests.support.model import BLOCK_BYTES, Actor, source_bytes
from tests.support.servers import PLUGIN, Server, impatient, plugin, wait_for

SIZE_BYTES = 8 << 20
QUARTER = SIZE_BYTES // 4
PORT = 10809
MENDED_S = 120.0


@contextmanager
def source(directory: Path, link: Link) -> Iterator[None]:
    """A server at the source."""
    image = directory / "source.img"
    image.write_bytes(source_bytes(SIZE_BYTES))
    argv = ["nbdkit", "-f", "-t", "1", "-i", SOURCE_ADDRESS, "-p", str(PORT), "file", str(image)]
    process = subprocess.Popen([*link.within(link.source), *argv])
    try:
        wait_for(lambda: link.listens(PORT), "the source")
        yield
    finally:
        process.kill()
        process.wait()


def proxy(directory: Path, link: Link, *keys: str, file: Path = PLUGIN) -> Any:
    """A proxy at the other site; its client is on a Unix socket and doesn't feel the cut."""
    store, uri = f"store={directory / 'store'}", f"source=nbd://{SOURCE_ADDRESS}:{PORT}"
    within = link.within(link.proxy)
    return plugin(directory, "proxy", store, uri, "readahead=0", *keys, within=within, file=file)


def at_work_locally(server: Server, model: bytearray, requests: int) -> None:
    """Reads of what is present and writes of whole blocks, in the first quarter of the disk."""
    handle = server.connect()
    for at in range(0, requests * BLOCK_BYTES, BLOCK_BYTES):
        assert handle.pread(BLOCK_BYTES, at) == model[at : at + BLOCK_BYTES]
        absent = SIZE_BYTES - BLOCK_BYTES - at
        data = bytes([at % 251]) * BLOCK_BYTES
        handle.pwrite(data, absent)
        model[absent : absent + BLOCK_BYTES] = data
        assert handle.pread(BLOCK_BYTES, absent) == data


class Guest:
    """A guest at work on the second quarter of the disk, where much is absent."""

    def __init__(self, server: Server, model: bytearray) -> None:
        self.requests = 0
        self.failure: BaseException | None = None
        self._actor = Actor(server.connect(), model, QUARTER, 2 * QUARTER, seed=3)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Guest":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(MENDED_S)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._actor.step()
                self.requests += 1
        except BaseException as error:
            self.failure = error

    def goes_on(self) -> None:
        """Wait until it has made more requests."""
        before = self.requests
        wait_for(lambda: self.failure or self.requests > before + 5, "the guest", MENDED_S)
        assert self.failure is None


@pytest.mark.parametrize(
    "lengths_s", [(0.1, 0.4, 0.2, 0.7), (2.0,), (5.0,)], ids=("short", "seconds", "stall")
)
def test_a_cut_below_the_limit_costs_no_error_and_is_made_good(
    link: Link, tmp_path: Path, lengths_s: tuple[float, ...]
) -> None:
    """The longest outlasts the time after which a silent connection is given up."""
    model = source_bytes(SIZE_BYTES)
    keys, file = ("rate=4M", "retry-timeout=120"), impatient(tmp_path)
    with source(tmp_path, link), proxy(tmp_path, link, *keys, file=file) as server:
        server.connect().pread(QUARTER, 0)
        with Guest(server, model) as guest:
            guest.goes_on()
            for number, length_s in enumerate(lengths_s):
                link.cut()
                mended = threading.Timer(length_s, link.mend)
                if number == 0:  # ends before the link is mended, or never
                    at_work_locally(server, model, 30)
                mended.start()
                mended.join()
                guest.goes_on()
        assert guest.failure is None
        server.hurry()
        server.wait(MENDED_S)
        Actor(server.connect(), model, 0, SIZE_BYTES, seed=1).check_all()
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_a_cut_above_the_limit_fails_reads_of_absent_blocks_only(
    link: Link, tmp_path: Path
) -> None:
    model = source_bytes(SIZE_BYTES)
    keys, file = ("rate=1M", "retry-timeout=1"), impatient(tmp_path)
    with source(tmp_path, link), proxy(tmp_path, link, *keys, file=file) as server:
        server.connect().pread(QUARTER, 0)
        guest = server.connect()
        link.cut()
        for at in (2 * QUARTER, 2 * QUARTER + 65_536):
            with pytest.raises(nbd.Error) as caught:
                guest.pread(512, at)
            assert caught.value.errno == "EIO"
        at_work_locally(server, model, 30)
        with pytest.raises(nbd.Error):  # a block written in part is read first
            guest.pwrite(b"x", 2 * QUARTER)
        guest.zero(BLOCK_BYTES, 2 * QUARTER)
        model[2 * QUARTER : 2 * QUARTER + BLOCK_BYTES] = bytes(BLOCK_BYTES)
        guest.flush()
        status = server.status()
        assert not status["source_connected"] and status["state"] == "active"
        link.mend()
        wait_for(lambda: server.status()["source_connected"], "the source", MENDED_S)
        assert guest.pread(512, 2 * QUARTER + 65_536) == model[2 * QUARTER + 65_536 :][:512]
        server.hurry()
        server.wait(MENDED_S)
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_a_proxy_that_is_started_during_a_cut_serves_what_it_has(
    link: Link, tmp_path: Path
) -> None:
    model = source_bytes(SIZE_BYTES)
    with source(tmp_path, link):
        with proxy(tmp_path, link, "background=off") as server:
            server.connect().pread(QUARTER, 0)
            server.kill()
        link.cut()
        with proxy(tmp_path, link, "retry-timeout=60", file=impatient(tmp_path)) as server:
            at_work_locally(server, model, 30)
            link.mend()
            server.wait(MENDED_S)
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_reads_that_wait_for_the_link_are_answered_once_it_is_back(
    link: Link, tmp_path: Path
) -> None:
    model = source_bytes(SIZE_BYTES)
    got: dict[int, Any] = {}

    def read(server: Server, at: int) -> None:
        handle = nbd.NBD()
        handle.connect_uri(server.uri)
        got[at] = handle.pread(4096, at)

    with source(tmp_path, link):
        with proxy(tmp_path, link, "background=off", "retry-timeout=120") as server:
            server.connect().pread(4096, 0)
            link.cut()
            places = range(QUARTER, 2 * QUARTER, 1 << 18)
            waiting = [threading.Thread(target=read, args=(server, at)) for at in places]
            for thread in waiting:
                thread.start()
            time.sleep(1)
            assert not got
            link.mend()
            for thread in waiting:
                thread.join(MENDED_S)
    assert got == {at: model[at : at + 4096] for at in places}
