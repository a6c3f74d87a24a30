"""The WAN is cut while a proxy keeps in step, and while it takes the disk over."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from relocator.errors import RelocatorError
from tests.nbd import test_bitmaps
from tests.nbd.test_rest import BLOCK, SIZE_BYTES, Site, absent
from tests.nbd.test_rounds import at_work
from tests.support.link import SOURCE_ADDRESS, Link
from tests.support.model import source_bytes
from tests.support.servers import Server, impatient, plugin, wait_for
from tests.support.storage_daemon import storage_daemon

PORT = 10809
MENDED_S = 120.0
#: the source sends slowly over all connections together, so that there is a middle to be cut
SLOWLY = ("rate=16M", "burstiness=0.05")
BRINGS = 200


@contextmanager
def reached(link: Link, socket: Path) -> Iterator[None]:
    """The server on a Unix socket is the source, at its site's address."""
    listens = f"TCP-LISTEN:{PORT},bind={SOURCE_ADDRESS},fork,reuseaddr"
    argv = [*link.within(link.source), "socat", listens, f"UNIX-CONNECT:{socket}"]
    relay = subprocess.Popen(argv, start_new_session=True)
    try:
        wait_for(lambda: link.listens(PORT), "the source")
        yield
    finally:
        os.killpg(relay.pid, signal.SIGKILL)  # and those that it forked
        relay.wait()


def standby(directory: Path, link: Link, *keys: str, export: str = "") -> Any:
    """A proxy at the other site, which copies ahead."""
    keys = (f"source=nbd://{SOURCE_ADDRESS}:{PORT}/{export}", "mode=standby", *keys)
    within, file = link.within(link.proxy), impatient(directory)
    store = f"store={directory / 'store'}"
    return plugin(directory, "proxy", store, *keys, within=within, file=file)


@contextmanager
def moving(directory: Path, link: Link, site: Site, *keys: str) -> Iterator[tuple[Any, Server]]:
    """A guest's handle at the source, and a proxy that has copied ahead."""
    with site.serve(*SLOWLY, filters=("rate",)) as target, reached(link, target.socket):
        with standby(directory, link, *keys) as server:
            wait_for(lambda: server.status()["rounds"], "the copy ahead", MENDED_S)
            yield target.connect(), server


def test_cuts_between_rounds_and_within_them_cost_nothing_but_time(
    link: Link, tmp_path: Path
) -> None:
    site = Site(tmp_path)
    with moving(tmp_path, link, site, "refresh=0.1") as (guest, server):
        with at_work(lambda block, count: site.write(guest, block, count), 1000):
            for length_s in (0.2, 1.0, 0.5):
                link.cut()
                time.sleep(length_s)
                link.mend()
                rounds = server.status()["rounds"]
                wait_for(lambda n=rounds: server.status()["rounds"] > n, "a round", MENDED_S)
        server.control.call("activate", wait=True)
        server.wait(MENDED_S)
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


def test_a_cut_while_the_seal_s_blocks_come_is_made_good(link: Link, tmp_path: Path) -> None:
    """It outlasts the time after which an answer is given up: they are fetched."""
    site = Site(tmp_path)
    with moving(tmp_path, link, site, "refresh=0.1", "seal-brings=2M") as (guest, server):
        server.control.call("set", refresh="off")
        wait_for(lambda: absent(server) == 0, "what the last round dropped", MENDED_S)
        site.write(guest, 100, BRINGS)
        server.control.call("activate")
        wait_for(lambda: server.status()["brought_bytes"], "what comes")
        link.cut()
        threading.Timer(5.0, link.mend).start()
        assert server.status()["brought_bytes"] < BRINGS * BLOCK
        here = server.connect()
        site.model[110 * BLOCK : 112 * BLOCK] = b"m" * (2 * BLOCK)
        here.pwrite(b"m" * (2 * BLOCK), 110 * BLOCK)  # the seal itself has come
        assert here.pread(SIZE_BYTES, 0) == site.model
        server.wait(MENDED_S)
    assert (tmp_path / "store" / "disk.img").read_bytes() == site.model


@pytest.mark.parametrize("kind", ["relocator", "bitmap"])
def test_a_switch_during_a_cut_waits_for_the_link(link: Link, tmp_path: Path, kind: str) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        if kind == "relocator":
            site = Site(tmp_path)
            guest, server = stack.enter_context(moving(tmp_path, link, site))
            site.write(guest, 100, 30)
            model = site.model
        else:
            (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
            qemu = stack.enter_context(storage_daemon(tmp_path, tmp_path / "disk.img"))
            stack.enter_context(reached(link, tmp_path / "qemu.sock"))
            qemu.record("b0")
            qemu.offer("b0")
            keys = ("source-bitmap=b0", "refresh=0.1")
            server = stack.enter_context(standby(tmp_path, link, *keys, export="disk"))
            wait_for(lambda: absent(server) == 0, "the copy ahead", MENDED_S)
            writer = test_bitmaps.Guest(qemu)
            writer.write(100, 30)
            writer.close()
            model = writer.model
        link.cut()
        server.control.call("activate")
        here = server.connect()
        model[7 * BLOCK : 8 * BLOCK] = b"m" * BLOCK
        written = pool.submit(here.pwrite, b"m" * BLOCK, 7 * BLOCK)
        time.sleep(1.0)
        assert (server.status()["state"], written.done()) == ("activating", False)
        link.mend()
        written.result(MENDED_S)
        assert here.pread(SIZE_BYTES, 0) == model
        server.wait(MENDED_S)
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_a_switch_that_fails_for_a_cut_does_so_soon_after_its_time(
    link: Link, tmp_path: Path
) -> None:
    """What is asked already is waited for, but no connection is made after that time."""
    site = Site(tmp_path)
    keys = (f"source=nbd://{SOURCE_ADDRESS}:{PORT}/", "mode=standby", "retry-timeout=8")
    within = link.within(link.proxy)
    with site.serve() as target, reached(link, target.socket):
        store = f"store={tmp_path / 'store'}"
        with plugin(tmp_path, "proxy", store, *keys, within=within) as server:
            wait_for(lambda: server.status()["rounds"], "the copy ahead", MENDED_S)
            link.cut()
            began_s = time.monotonic()
            with pytest.raises(RelocatorError, match="the disk was not taken over"):
                server.control.call("activate", wait=True)
            assert 8 <= time.monotonic() - began_s < 16
            link.mend()
            wait_for(lambda: target.status()["state"] == "complete", "the way back", MENDED_S)
