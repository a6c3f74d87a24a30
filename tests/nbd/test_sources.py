"""Servers of all kinds as the source, with a guest at work, and with faults on the way."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.errors import UpstreamError
from relocator.filesystem.rounds import Rounds
from relocator.source import sockets, upstream
from relocator.source.endpoint import Endpoint
from relocator.source.handles import connected
from relocator.source.remote import Source
from relocator.source.sockets import round_trip_s
from relocator.source.upstream import FAR, FEWEST, Upstream
from relocator.store.geometry import Extent
from tests.nbd.test_source_kinds import nbdkit_file, nbdkit_with_large_blocks, qemu_nbd_for
from tests.support import servers
from tests.support.model import source_bytes
from tests.support.servers import wait_for
from tests.support.sources import SIZE_BYTES, Daemon, daemon, image


def proxy(directory: Path, port: int, *keys: str, **more: Any) -> Any:
    """A proxy of the server at `port`."""
    return servers.proxy(directory, f"nbd://127.0.0.1:{port}/disk", *keys, **more)


def test_requests_keep_to_the_block_sizes_that_the_server_asks_for(tmp_path: Path) -> None:
    model = source_bytes(SIZE_BYTES)
    with daemon(
        tmp_path, "source", lambda port: nbdkit_with_large_blocks(tmp_path, port)
    ) as source:
        with proxy(tmp_path, source.port, "background=off", "readahead=0") as server:
            handle = server.connect()
            assert handle.pread(512, 70_000) == model[70_000:70_512]
            assert handle.pread(1 << 20, 4096 * 3) == model[4096 * 3 : 4096 * 3 + (1 << 20)]
            assert handle.pread(100, SIZE_BYTES - 100) == model[-100:]
            assert server.status()["error"] is None


def faulty(directory: Path, *keys: str) -> Callable[[int], list[str]]:
    """A server with nbdkit's filters `error` and `delay` in between."""
    path = str(image(directory))
    flags = ["--filter=error", "--filter=delay", "file", path, *keys]
    return lambda port: ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), *flags]


def test_reads_that_fail_at_random_are_made_again_by_the_copy(tmp_path: Path) -> None:
    argv = faulty(tmp_path, "error-pread=EIO", "error-pread-rate=10%", "delay-read=2ms")
    with daemon(tmp_path, "source", argv) as source:
        soon = "from relocator.copying import pacer\npacer.HOLD_S = 0.1"
        file = servers.mistaken(tmp_path, soon)
        with proxy(tmp_path, source.port, "window=1M", file=file) as server:
            server.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_a_source_that_bears_one_client_serves_guest_and_copy(tmp_path: Path) -> None:
    model, path = source_bytes(SIZE_BYTES), image(tmp_path)
    ours = servers.impatient(tmp_path)
    with daemon(tmp_path, "source", lambda port: qemu_nbd_for(1, port, "raw", path)) as source:
        with proxy(tmp_path, source.port, "order=sequential", file=ours) as server:
            guest = server.connect()
            assert guest.pread(4096, SIZE_BYTES - 4096) == model[-4096:]
            server.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_a_server_that_says_it_is_shutting_down_is_asked_again(tmp_path: Path) -> None:
    argv = faulty(tmp_path, "error-pread=ESHUTDOWN", "error-pread-rate=20%")
    model = source_bytes(SIZE_BYTES)
    with daemon(tmp_path, "source", argv) as source:
        with proxy(tmp_path, source.port, "background=off", "readahead=0") as server:
            handle = server.connect()
            for at in range(0, 1 << 20, 65_536):
                assert handle.pread(4096, at) == model[at : at + 4096]


def test_a_source_that_hangs_and_goes_on_costs_no_error(tmp_path: Path) -> None:
    """Longer than a connection may be silent: it is given up, and the next ones hang as well."""
    model = source_bytes(SIZE_BYTES)
    got: list[bytes] = []
    with daemon(tmp_path, "source", lambda port: nbdkit_file(tmp_path, port)) as source:
        file = servers.impatient(tmp_path)
        with proxy(tmp_path, source.port, "rate=1M", "readahead=0", file=file) as server:
            handle = server.connect()
            handle.pread(4096, 0)
            source.signal(signal.SIGSTOP)
            far = SIZE_BYTES - 8192
            waiting = threading.Thread(target=lambda: got.append(handle.pread(4096, far)))
            waiting.start()
            wait_for(lambda: not server.status()["source_connected"], "the stall", 20)
            time.sleep(2)
            assert not got
            source.signal(signal.SIGCONT)
            waiting.join(55)
            assert got == [model[far : far + 4096]]
            server.hurry()
            server.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_a_source_that_fails_every_read_is_an_io_error(tmp_path: Path) -> None:
    argv = faulty(tmp_path, "error-pread=EIO", "error-pread-rate=100%")
    with daemon(tmp_path, "source", argv) as source:
        with proxy(tmp_path, source.port, "background=off") as server:
            with pytest.raises(nbd.Error) as caught:
                server.connect().pread(4096, 0)
    assert caught.value.errno == "EIO"


def test_a_source_that_dies_while_it_is_surveyed_can_not_be_reached(tmp_path: Path) -> None:
    with daemon(tmp_path, "source", lambda port: nbdkit_file(tmp_path, port)) as source:

        def survey() -> Rounds[None]:
            (first,) = yield [Extent(0, 4096)]
            assert first == source_bytes(SIZE_BYTES)[:4096]
            source.kill()
            yield [Extent(4096, 4096), Extent(8192, 4096)]

        with pytest.raises(UpstreamError):
            Source(Endpoint(f"nbd://127.0.0.1:{source.port}/")).serve(survey())


def test_a_source_that_dies_while_it_is_asked_for_hints_ends_nothing(tmp_path: Path) -> None:
    argv = faulty(tmp_path, "delay-read=700ms")  # the survey's first round takes as long
    with daemon(tmp_path, "source", argv) as source:
        with proxy(tmp_path, source.port, "background=off", "readahead=0") as server:
            handle = server.connect()
            handle.pwrite(b"here" * 1024, 0)
            source.kill()
            wait_for(lambda: not server.status()["source_connected"], "the end")
            assert handle.pread(4096, 0) == b"here" * 1024
            source.start()
            assert handle.pread(4096, 4096) == source_bytes(SIZE_BYTES)[4096:8192]
            assert server.process.poll() is None


LINE = '{"relocator": "relocator-1", %s}\n'


@pytest.mark.parametrize(
    "fields",
    [
        '"ok": true',
        '"ok": true, "attachments": 7',
        '"ok": true, "attachments": {"dirty": [1]}',
        '"ok": true, "attachments": {"dirty": ["x", "y"]}',
        '"ok": false, "attachments": {}',
        '"attachments": {}',
        '"ok": true, "attachments": {"dirty": [0, 1099511627776]}',
        '"ok": true, "attachments": {}',
        '"ok": true, "id": "a", "attachments": {"other": [0, 9]}',
        '"ok": true, "id": "a", "attachments": {"dirty": [0, 9]}',
    ],
)
def test_an_answer_that_lacks_something_is_the_sources_fault(tmp_path: Path, fields: str) -> None:
    (tmp_path / "disk.img").write_bytes((LINE % fields).encode().ljust(1 << 16))
    disk = str(tmp_path / "disk.img")
    with daemon(
        tmp_path, "source", lambda port: ["nbdkit", "-f", "-p", str(port), "file", disk]
    ) as source:
        with pytest.raises(UpstreamError):
            answer = Source(Endpoint(f"nbd://127.0.0.1:{source.port}/")).call("identify")
            assert answer["id"] == "a"
            answer.map("dirty", 1024)


def connections_at(source: Daemon, tmp_path: Path, wanted: int, seen: int) -> None:
    """A proxy told to open `wanted` connections has `seen`, and copies all the same."""
    keys = (f"connections={wanted}", "rate=4M", "window=1M")
    with proxy(tmp_path, source.port, *keys) as server:
        wait_for(lambda: server.status()["source_connections"] == seen, f"{seen} of them")
        time.sleep(0.3)
        assert server.status()["source_connections"] == seen
        server.hurry()
        server.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_several_connections_share_the_background_copy(tmp_path: Path) -> None:
    with daemon(tmp_path, "source", lambda port: nbdkit_file(tmp_path, port)) as source:
        connections_at(source, tmp_path, wanted=5, seen=5)


def test_all_connections_are_up_before_anything_is_copied(tmp_path: Path) -> None:
    with daemon(tmp_path, "source", lambda port: nbdkit_file(tmp_path, port)) as source:
        with proxy(tmp_path, source.port, "connections=5", "background=off") as server:
            wait_for(lambda: server.status()["source_connections"] == 5, "five of them")
            assert server.status()["background_bytes"] == 0


@pytest.mark.parametrize(("far_s", "seen"), [(0.0, FAR), (10.0, FEWEST)])
def test_a_far_source_gets_more_connections_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far_s: float, seen: int
) -> None:
    monkeypatch.setattr(upstream, "FAR_S", far_s)
    with daemon(tmp_path, "source", lambda port: nbdkit_file(tmp_path, port)) as source:
        endpoint = Endpoint(f"nbd://127.0.0.1:{source.port}/")
        with connected(endpoint) as handle:
            assert 0 < round_trip_s(handle.aio_get_fd()) < 1
        there = Upstream(endpoint, 10.0)
        there.start()
        try:
            wait_for(lambda: there.connected and there.connections >= seen, f"{seen} connections")
            assert there.connections == seen
        finally:
            there.close()


@pytest.mark.parametrize(
    ("module", "opens", "refusals"), [(sockets, "socket_of", 3), (os, "eventfd", 1)]
)
def test_a_connection_for_which_no_file_can_be_opened_is_made_later_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, opens: str, refusals: int
) -> None:
    open_, arrived, refused = getattr(module, opens), threading.Event(), []

    def scarce(*arguments: Any) -> Any:
        if len(refused) < refusals:
            refused.append(arguments)
            raise OSError(errno.EMFILE, "Too many open files")
        return open_(*arguments)

    with daemon(tmp_path, "source", lambda port: nbdkit_file(tmp_path, port)) as source:
        there = Upstream(Endpoint(f"nbd://127.0.0.1:{source.port}/"), 10.0, connections=4)
        monkeypatch.setattr(module, opens, scarce)
        there.start()
        try:
            wait_for(lambda: len(refused) == refusals and there.connected, "both connections")
            there.fetch(0, 4096, lambda _request: arrived.set(), background=True)
            assert arrived.wait(10)
        finally:
            there.close()


@pytest.mark.parametrize("connections", [2, 4])
def test_demand_may_share_the_background_s_connections(tmp_path: Path, connections: int) -> None:
    keys = ("demand=shared", f"connections={connections}", "rate=4M", "readahead=0")
    data = source_bytes(SIZE_BYTES)
    with (
        daemon(tmp_path, "source", lambda port: nbdkit_file(tmp_path, port)) as source,
        proxy(tmp_path, source.port, *keys) as server,
    ):
        guest = server.connect()
        for offset in range(SIZE_BYTES - (1 << 20), SIZE_BYTES, 1 << 17):
            assert bytes(guest.pread(1 << 16, offset)) == data[offset : offset + (1 << 16)]
        server.hurry()
        server.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == data


def test_a_source_that_bears_only_one_client_gets_two_connections(tmp_path: Path) -> None:
    def argv(port: int) -> list[str]:
        flags = ["--filter=multi-conn", "file", str(image(tmp_path)), "multi-conn-mode=disable"]
        return ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), *flags]

    with daemon(tmp_path, "source", argv) as source:
        connections_at(source, tmp_path, wanted=5, seen=2)
