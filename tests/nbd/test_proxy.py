"""The proxy, with real nbdkit on both sides: contents compared byte by byte with a model."""

import itertools
import resource
import threading
from pathlib import Path

import nbd
import pytest

from relocator.errors import RelocatorError
from tests.support.model import Actor, source_bytes
from tests.support.servers import Server, nbdkit, plugin, proxy, target, wait_for

SIZE_BYTES = (6 << 20) + 1536  # the last block is short


@pytest.fixture
def source(tmp_path: Path):
    """Our target, each read a little late so that requests overlap."""
    with target(tmp_path, SIZE_BYTES, "delay-read=3ms", flags=("--filter=delay",)) as server:
        yield server


def run_actors(actors: list[Actor], steps: int) -> None:
    """All actors at once, each in a thread; the first failure is raised."""
    failures: list[BaseException] = []

    def act(actor: Actor) -> None:
        try:
            for _ in range(steps):
                actor.step()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=act, args=(actor,)) for actor in actors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("seed", range(3))
def test_random_requests_beside_the_background_copy_read_like_the_model(
    tmp_path: Path, source: Server, seed: int
) -> None:
    model = source_bytes(SIZE_BYTES)
    # Odd borders: neighbours share a block, but no byte.
    borders = [0, 1_000_001, 3_333_333, SIZE_BYTES]
    with proxy(tmp_path, source, "rate=20M", "window=256K") as server:
        actors = [
            Actor(server.connect(), model, start, end, seed * 10 + index)
            for index, (start, end) in enumerate(itertools.pairwise(borders))
        ]
        run_actors(actors, 150)
        server.hurry()
        status = server.wait()
        run_actors(actors, 50)
        for actor in actors:
            actor.check_all()
    assert status["state"] == "complete"
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_a_block_is_fetched_at_most_once(tmp_path: Path, source: Server) -> None:
    with proxy(tmp_path, source) as server:
        run_actors([ReadAll(server, start) for start in (0, 1 << 20, 3 << 20)], 1)
        status = server.wait()
    moved = status["on_demand_bytes"] + status["background_bytes"] + status["hole_bytes"]
    assert moved == SIZE_BYTES


class ReadAll(Actor):
    """Reads everything from `start` on, then the rest."""

    def __init__(self, server: Server, start: int) -> None:
        model = source_bytes(SIZE_BYTES)
        super().__init__(server.connect(), model, 0, SIZE_BYTES, start)
        self._from = start

    def step(self) -> None:
        for at in range(0, SIZE_BYTES, 50_000):
            offset = (self._from + at) % SIZE_BYTES
            self._read(offset, min(50_000, SIZE_BYTES - offset), 0)


def test_without_background_only_what_is_read_is_fetched(tmp_path: Path, source: Server) -> None:
    with proxy(tmp_path, source, "background=off", "readahead=0") as server:
        handle = server.connect()
        assert handle.pread(10, 5000) == source_bytes(SIZE_BYTES)[5000:5010]
        handle.pread(8192, 4096)
        status = server.status()
    assert (status["present_blocks"], status["on_demand_bytes"]) == (2, 8192)
    assert (status["background"], status["background_bytes"]) == ("off", 0)


def test_full_block_write_fetches_nothing_and_a_partial_one_its_block(
    tmp_path: Path, source: Server
) -> None:
    model = source_bytes(SIZE_BYTES)
    with proxy(tmp_path, source, "background=off", "readahead=0") as server:
        handle = server.connect()
        handle.pwrite(b"w" * 8192, 8192)
        assert server.status()["on_demand_bytes"] == 0
        handle.pwrite(b"p" * 10, 100)
        assert server.status()["on_demand_bytes"] == 4096
        model[100:110] = b"p" * 10
        assert handle.pread(4096, 0) == model[:4096]
        last = SIZE_BYTES // 4096 * 4096
        handle.pwrite(b"e" * (SIZE_BYTES - last), last)  # the short last block, whole
        assert server.status()["on_demand_bytes"] == 4096


def test_the_source_is_never_written(tmp_path: Path, source: Server) -> None:
    with proxy(tmp_path, source) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 100_000, 12_345)
        handle.zero(50_000, 400_000)
        handle.trim(50_000, 800_000)
        handle.flush()
        server.wait()
    assert (tmp_path / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_completion_drops_the_source_and_the_proxy_serves_on(
    tmp_path: Path, source: Server
) -> None:
    model = source_bytes(SIZE_BYTES)
    with proxy(tmp_path, source) as server:
        handle = server.connect()
        status = server.wait()
        assert (status["role"], status["source_connected"]) == ("target", False)
        source.kill()
        assert handle.pread(SIZE_BYTES, 0) == model
        handle.pwrite(b"later", 7)
    with proxy(tmp_path, None) as server:  # a complete store needs no source
        model[7:12] = b"later"
        assert server.connect().pread(SIZE_BYTES, 0) == model
        assert server.status()["state"] == "complete"
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_proxy_that_comes_back_goes_on_where_it_was(
    tmp_path: Path, source: Server, how: str
) -> None:
    model = source_bytes(SIZE_BYTES)
    with proxy(tmp_path, source, "background=off", "readahead=0") as server:
        actor = Actor(server.connect(), model, 0, SIZE_BYTES, 5)
        for _ in range(120):
            actor.step()
        before = server.status()
        getattr(server, how)()
    with proxy(tmp_path, source, "background=off", "readahead=0") as server:
        after = server.status()
        assert after["present_blocks"] == before["present_blocks"]
        assert after["dirty_blocks"] == before["dirty_blocks"]
        Actor(server.connect(), model, 0, SIZE_BYTES, 6).check_all()
        server.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_after_a_reboot_only_what_was_flushed_is_believed(tmp_path: Path, source: Server) -> None:
    model = source_bytes(SIZE_BYTES)
    with proxy(tmp_path, source, "background=off", "readahead=0") as server:
        handle = server.connect()
        handle.pwrite(b"F" * 4096, 0)
        handle.flush()
        handle.pwrite(b"U" * 4096, 8192)
        server.kill()
    live = tmp_path / "store" / "map.live"
    content = bytearray(live.read_bytes())
    at = content.index(Path("/proc/sys/kernel/random/boot_id").read_bytes()[:8])
    content[at : at + 8] = b"00000000"  # as another boot would have left it
    live.write_bytes(content)
    with proxy(tmp_path, source, "background=off", "readahead=0") as server:
        handle = server.connect()
        assert server.status()["present_blocks"] == 1
        assert handle.pread(4096, 0) == b"F" * 4096
        assert handle.pread(4096, 8192) == model[8192:12288]


def test_source_lost_and_back_costs_no_error(tmp_path: Path) -> None:
    model = source_bytes(SIZE_BYTES)
    got: list[bytes] = []
    with target(tmp_path, SIZE_BYTES) as first:
        with proxy(tmp_path, first, "background=off", "readahead=0") as server:
            handle, other = server.connect(), server.connect()
            assert handle.pread(4096, 0) == model[:4096]
            first.kill()
            waiting = threading.Thread(target=lambda: got.append(handle.pread(4096, 40960)))
            waiting.start()
            other.pwrite(b"n" * 4096, 81920)  # whole blocks need no source
            assert other.pread(4096, 0) == model[:4096]
            assert not got
            with plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}"):
                waiting.join(30)
                assert got == [model[40960:45056]]
                model[81920:86016] = b"n" * 4096
                server.control.call("set", background="on")
                server.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_source_lost_for_too_long_is_an_io_error_and_nothing_worse(
    tmp_path: Path, source: Server
) -> None:
    with proxy(tmp_path, source, "background=off", "readahead=0", "retry-timeout=0.5") as server:
        handle = server.connect()
        handle.pread(4096, 0)
        source.kill()
        with pytest.raises(nbd.Error) as caught:
            handle.pread(4096, 40960)
        assert caught.value.errno == "EIO"
        assert handle.pread(4096, 0) == source_bytes(SIZE_BYTES)[:4096]
        assert server.status()["source_connected"] is False


def test_pause_resume_and_set_steer_the_background_copy(tmp_path: Path, source: Server) -> None:
    with proxy(tmp_path, source, "rate=1M") as server:
        control = server.control
        assert control.call("pause")["background"] == "paused"
        wait_for(lambda: control.call("status")["in_flight_bytes"] == 0, "the link to drain")
        still = control.call("status")["background_bytes"]
        assert control.call("status")["background_bytes"] == still
        with pytest.raises(RelocatorError, match=r"gave up after 0\.2 s"):
            control.call("wait", timeout_s=0.2)
        control.call("set", rate="none", window="64K")
        assert control.call("resume")["background"] == "on"
        assert control.call("wait")["state"] == "complete"
        with pytest.raises(RelocatorError, match="'pause' is refused in state 'complete'"):
            control.call("pause")


def test_holes_are_never_transferred(tmp_path: Path) -> None:
    with (tmp_path / "disk.img").open("wb") as disk:
        disk.write(b"data" * 1024)
        disk.truncate(64 << 20)
    with nbdkit(tmp_path, "target", ["file", str(tmp_path / "disk.img")]) as source:
        with proxy(tmp_path, source) as server:
            status = server.wait()
            entries: list[int] = []
            server.connect().block_status(
                64 << 20, 0, lambda _context, _offset, got, _error: entries.extend(got) or 0
            )
    assert status["background_bytes"] == 4096
    assert status["hole_bytes"] == (64 << 20) - 4096
    assert entries == [4096, 0, (64 << 20) - 4096, 3]
    assert (tmp_path / "store" / "disk.img").stat().st_blocks * 512 < 1 << 20


def test_absent_blocks_count_as_data_in_block_status(tmp_path: Path, source: Server) -> None:
    with proxy(tmp_path, source, "background=off", "readahead=0") as server:
        entries: list[int] = []
        handle = server.connect()
        handle.zero(8192, 4096)
        handle.block_status(
            SIZE_BYTES, 0, lambda _context, _offset, got, _error: entries.extend(got) or 0
        )
    assert entries[:4] == [4096, 0, 8192, 3]
    assert sum(entries[::2]) == SIZE_BYTES


def test_several_connections_see_one_disk(tmp_path: Path, source: Server) -> None:
    with proxy(tmp_path, source, "background=off", "readahead=0") as server:
        one, two = server.connect(), server.connect()
        assert one.can_multi_conn()
        one.pwrite(b"seen", 10)
        assert two.pread(4, 10) == b"seen"


def test_a_full_store_refuses_writes_and_goes_on_reading_from_the_source(
    tmp_path: Path, source: Server
) -> None:
    model = source_bytes(SIZE_BYTES)
    with proxy(tmp_path, source, "background=off", "readahead=0") as server:
        handle = server.connect()
        handle.pread(4096, 0)
        limit_file_size(server.process.pid, 1 << 20)  # a write beyond fails with EFBIG
        far = 4 << 20
        with pytest.raises(nbd.Error):
            handle.pwrite(b"w" * 4096, far)
        assert handle.pread(8192, far) == model[far : far + 8192]
        assert handle.pread(4096, 0) == model[:4096]
        assert server.status()["present_blocks"] == 1


def limit_file_size(pid: int, limit_bytes: int) -> None:
    """Make the process fail writes beyond `limit_bytes` of any file."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
