"""Which blocks come first, seen from outside: what is read at no cost once so much was copied."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from relocator.copying import heat
from relocator.errors import RelocatorError
from tests.support.model import source_bytes
from tests.support.servers import Server, nbdkit, proxy, target, wait_for

SIZE_BYTES = 16 << 20
BLOCK = 4096
GROUP = heat.LEAST_GROUP_BYTES


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Our target with 16 MiB of random data."""
    with target(tmp_path, SIZE_BYTES) as server:
        yield server


def copied_first(server: Server, count_bytes: int) -> Server:
    """Let the copy run until `count_bytes` have arrived, then stop it."""
    wait_for(lambda: server.status()["background_bytes"] >= count_bytes, "the copy")
    server.control.call("pause")
    wait_for(lambda: server.status()["in_flight_bytes"] == 0, "the link to drain")
    return server


def cost(server: Server, offset: int, length: int) -> int:
    """Bytes that a read has to fetch on demand."""
    before = server.status()["on_demand_bytes"]
    server.connect().pread(length, offset)
    return int(server.status()["on_demand_bytes"]) - before


def test_the_groups_that_were_hot_at_the_source_come_first(tmp_path: Path, source: Server) -> None:
    guest = source.connect()
    for _ in range(20):
        guest.pread(BLOCK, 11 << 20)
        guest.pwrite(b"h" * BLOCK, 13 << 20)
    keys = ("mode=standby", "background=off", "order=hot,sequential", "rate=16M", "readahead=0")
    with proxy(tmp_path, source, *keys) as server:
        server.control.call("activate")
        wait_for(lambda: "hot" in server.status()["known"], "the heat")
        server.control.call("set", background="on")
        copied_first(server, 3 << 20)
        assert cost(server, 11 << 20, GROUP) == 0
        assert cost(server, 13 << 20, GROUP) == 0
        assert cost(server, 15 << 20, GROUP) == GROUP


def test_what_the_guest_read_at_the_source_comes_first_block_by_block(tmp_path: Path) -> None:
    places = [3 << 20, 15 << 20, 9 << 20]
    store = tmp_path / "maps"
    with target(tmp_path, SIZE_BYTES, f"store={store}") as source:
        for place in places * 2:
            source.connect().pread(BLOCK, place)
    with target(tmp_path, SIZE_BYTES, f"store={store}") as source:  # it has not forgotten
        source.connect().pread(BLOCK, 12 << 20)
        keys = ("mode=standby", "background=off", "order=recent,sequential", "readahead=0")
        with proxy(tmp_path, source, *keys, "window=4K", "rate=1M") as server:
            server.control.call("activate", wait=True)
            assert "recent" in server.status()["known"]
            server.control.call("set", background="on")
            copied_first(server, 40 * BLOCK)  # also what the proxy knows its source by
            for place in [*places, 12 << 20]:
                assert cost(server, place, BLOCK) == 0
                assert cost(server, place + BLOCK, BLOCK) == BLOCK


def test_a_guests_access_pulls_its_group_forward(tmp_path: Path, source: Server) -> None:
    with proxy(tmp_path, source, "order=sequential", "rate=24M", "readahead=0") as server:
        server.connect().pread(BLOCK, 14 << 20)
        copied_first(server, 4 << 20)
        assert cost(server, 14 << 20, GROUP) == 0
        assert cost(server, 12 << 20, GROUP) == GROUP


def test_without_pull_forward_the_order_alone_decides(tmp_path: Path, source: Server) -> None:
    keys = ("order=sequential", "rate=24M", "readahead=0", "pull-forward=no")
    with proxy(tmp_path, source, *keys) as server:
        server.connect().pread(BLOCK, 14 << 20)
        copied_first(server, 4 << 20)
        assert cost(server, 14 << 20, GROUP) == GROUP - BLOCK


def test_a_trace_that_the_proxy_starts_with_comes_first(tmp_path: Path, source: Server) -> None:
    trace = tmp_path / "trace"
    trace.write_text(f"{9 << 20},{GROUP}\n{5 << 20},{GROUP}\n")
    keys = (f"order=trace:{trace}", "rate=24M", "readahead=0", "pull-forward=no")
    with proxy(tmp_path, source, *keys) as server:
        copied_first(server, 2 << 20)
        assert cost(server, 9 << 20, GROUP) == 0
        assert cost(server, 5 << 20, GROUP) == 0
        assert cost(server, 12 << 20, GROUP) == GROUP


def test_a_trace_that_is_not_there_is_refused_at_the_start(tmp_path: Path, source: Server) -> None:
    with pytest.raises(RuntimeError, match="order=trace:"):
        with proxy(tmp_path, source, f"order=trace:{tmp_path / 'none'}"):
            pass


def test_a_trace_below_zero_is_refused_in_flight_and_the_copy_goes_on(
    tmp_path: Path, source: Server
) -> None:
    trace = tmp_path / "trace"
    trace.write_text(f"0,{BLOCK}\n-{BLOCK},{BLOCK}\n")
    with proxy(tmp_path, source, "order=sequential", "rate=8M", "readahead=0") as server:
        with pytest.raises(RelocatorError, match=f"order=trace:{trace}: line 2: '-4096,4096' has"):
            server.control.call("set", order=f"trace:{trace}")
        assert server.status()["order"] == "sequential"
        server.hurry()
        server.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_a_trace_comes_first_and_an_order_can_be_changed_in_flight(
    tmp_path: Path, source: Server
) -> None:
    trace = tmp_path / "trace"
    trace.write_text("# offset,length\n" + f"{9 << 20},{1 << 20}\n{5 << 20},{1 << 20}\n")
    with proxy(tmp_path, source, "order=sequential", "rate=24M", "readahead=0") as server:
        server.control.call("set", order=f"trace:{trace},sequential")
        copied_first(server, 4 << 20)
        assert server.status()["order"] == f"trace:{trace},sequential"
        assert cost(server, 9 << 20, 1 << 20) == 0
        assert cost(server, 5 << 20, 1 << 20) == 0
        server.control.call("resume")
        server.control.call("set", order="random", rate="none")
        server.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    """An ext4 image of 32 MiB with 6 MiB of files, and old data in its free blocks."""
    files = tmp_path / "files"
    files.mkdir()
    for number in range(6):
        (files / f"file{number}").write_bytes(source_bytes(1 << 20, seed=number))
    image = tmp_path / "ext4.img"
    image.write_bytes(b"old data" * (4 << 20))
    command = [
        "mke2fs",
        *["-q", "-F", "-E", "nodiscard", "-t", "ext4", "-b", "4096", "-d"],
        str(files),
        str(image),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return image


def test_what_the_file_system_uses_comes_first(tmp_path: Path, ext4: Path) -> None:
    with nbdkit(tmp_path, "source", ["file", str(ext4)]) as source:
        keys = ("order=in-use,sequential", "background=off", "readahead=0")
        with proxy(tmp_path, source, *keys) as server:
            wait_for(lambda: "in-use" in server.status()["known"], "the bitmaps")
            server.control.call("set", background="on", rate="64M")
            copied_first(server, 14 << 20)
            clean = subprocess.run(
                ["debugfs", "-R", "dump file5 /dev/stdout", str(tmp_path / "store" / "disk.img")],
                capture_output=True,
                check=True,
            )
    assert clean.stdout == source_bytes(1 << 20, seed=5)


def test_free_blocks_can_be_skipped_and_the_saving_is_told(tmp_path: Path, ext4: Path) -> None:
    with nbdkit(tmp_path, "source", ["file", str(ext4)]) as source:
        keys = ("skip-free=yes", "background=off")
        with proxy(tmp_path, source, *keys) as server:
            wait_for(lambda: server.status()["skipped_bytes"], "free blocks")
            server.control.call("set", background="on")
            status = server.wait()
    moved = status["background_bytes"] + status["on_demand_bytes"]
    assert status["skipped_bytes"] > 16 << 20
    assert moved + status["skipped_bytes"] + status["hole_bytes"] == 32 << 20
    copy = tmp_path / "store" / "disk.img"
    subprocess.run(["e2fsck", "-fn", str(copy)], check=True, capture_output=True)
    found = subprocess.run(
        ["debugfs", "-R", "dump file3 /dev/stdout", str(copy)], capture_output=True, check=True
    )
    assert found.stdout == source_bytes(1 << 20, seed=3)


def test_what_a_guest_waits_for_travels_as_demand_also_with_read_ahead(
    tmp_path: Path, source: Server
) -> None:
    with proxy(tmp_path, source, "background=off") as server:
        assert cost(server, 5 << 20, BLOCK) == BLOCK
        wait_for(lambda: server.status()["background_bytes"] > 0, "the neighbourhood")
        assert cost(server, (5 << 20) + BLOCK, BLOCK) == 0
