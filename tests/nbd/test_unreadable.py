"""A source's disk with bad sectors: that is all that is missing, and nobody waits for it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.support.model import source_bytes
from tests.support.servers import Server, mistaken, proxy, target, wait_for

SIZE_BYTES = 8 << 20
BLOCK = 4096
BAD = (1 << 20) + 5 * BLOCK
#: the target's reads of what a file names fail, after so many seconds; the file may change
FAILING = """\
import errno, time
from pathlib import Path
from relocator.store.image import Image

read = Image.read_into


def failing(self, buffer, offset):
    try:
        first, end, seconds = Path({path!r}).read_text().split()
    except FileNotFoundError:
        return read(self, buffer, offset)
    if offset < int(end) and int(first) < offset + len(buffer):
        time.sleep(float(seconds))
        raise OSError(errno.EIO, "a bad sector")
    return read(self, buffer, offset)


Image.read_into = failing
"""
IMPATIENT = """\
from relocator.copying import hydration
from relocator.source import connection

connection.STALL_S = hydration.STUCK_S = {seconds}
"""
NEVER_S = 1000.0


class Sectors:
    """Bad ones of a target's disk."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "bad"
        self.plugin = mistaken(directory, FAILING.format(path=str(self._path)))

    def break_(self, first: int, length: int, seconds: float = 0.0) -> None:
        """Reads fail there, so late."""
        self._path.write_text(f"{first} {first + length} {seconds}")

    def mend(self) -> None:
        """They don't any more."""
        self._path.unlink()


@pytest.fixture
def sectors(tmp_path: Path) -> Sectors:
    (tmp_path / "source").mkdir()
    found = Sectors(tmp_path / "source")
    found.break_(BAD, BLOCK)
    return found


def impatient(directory: Path, seconds: float = 1.0) -> Path:
    """A plugin that is ours and waits so long where it else waits for 10 s."""
    (directory / "ours").mkdir()
    return mistaken(directory / "ours", IMPATIENT.format(seconds=seconds))


@contextmanager
def one_after_the_other(directory: Path, sectors: Sectors) -> Iterator[Server]:
    """A target that serves its requests as `relocator target` does; it need not end by itself."""
    flags = ("-t", "1")
    with target(directory, SIZE_BYTES, file=sectors.plugin, flags=flags) as source:
        try:
            yield source
        finally:
            source.kill()


def waits(guest: Any, offset: int) -> float:
    """How long a guest's read of a block takes."""
    began_s = time.monotonic()
    assert guest.pread(BLOCK, offset) == source_bytes(SIZE_BYTES)[offset : offset + BLOCK]
    return time.monotonic() - began_s


def refuses(guest: Any, offset: int) -> None:
    with pytest.raises(nbd.Error, match="EIO"):
        guest.pread(BLOCK, offset)


def missing(server: Server) -> int:
    status = server.status()
    return int(status["total_blocks"] - status["present_blocks"])


def copied(directory: Path) -> bytes:
    return (directory / "store" / "disk.img").read_bytes()


def test_a_bad_sector_is_all_that_is_missing_until_the_guest_writes_it(
    tmp_path: Path, sectors: Sectors
) -> None:
    model = source_bytes(SIZE_BYTES)
    with target(tmp_path, SIZE_BYTES, file=sectors.plugin) as source:
        with proxy(tmp_path, source) as server:
            wait_for(lambda: missing(server) == 1, "all but one block")
            told = f"the source can't read 4096 bytes of the disk, the first of them at {BAD}"
            wait_for(lambda: server.status()["faults"]["copy"] == told, "word of it")
            guest = server.connect()
            assert guest.pread(BLOCK, BAD - BLOCK) == model[BAD - BLOCK : BAD]
            with pytest.raises(nbd.Error, match="EIO"):
                guest.pread(BLOCK, BAD)
            time.sleep(0.3)  # what succeeds meanwhile hides nothing
            assert server.status()["error"] == told
            guest.pwrite(b"mended".ljust(BLOCK), BAD)
            server.wait()
            assert server.status()["error"] is None
    model[BAD : BAD + BLOCK] = b"mended".ljust(BLOCK)
    assert copied(tmp_path) == model


def test_what_can_be_read_again_is_fetched_again(tmp_path: Path, sectors: Sectors) -> None:
    with target(tmp_path, SIZE_BYTES, file=sectors.plugin) as source:
        with proxy(tmp_path, source) as server:
            wait_for(lambda: missing(server) == 1, "all but one block")
            sectors.mend()
            server.wait()
            assert server.status()["error"] is None
    assert copied(tmp_path) == source_bytes(SIZE_BYTES)


def test_many_bad_sectors_keep_nothing_else(tmp_path: Path, sectors: Sectors) -> None:
    sectors.break_(BAD, 40 * BLOCK)
    with target(tmp_path, SIZE_BYTES, file=sectors.plugin) as source:
        with proxy(tmp_path, source) as server:
            far = SIZE_BYTES // BLOCK - BAD // BLOCK - 40 - 64  # beyond any request with a bad one
            wait_for(lambda: server.status()["present_blocks"] >= BAD // BLOCK - 64 + far, "others")
            guest = server.connect()
            guest.pwrite(bytes(40 * BLOCK), BAD)
            server.wait()
    model = source_bytes(SIZE_BYTES)
    model[BAD : BAD + 40 * BLOCK] = bytes(40 * BLOCK)
    assert copied(tmp_path) == model


@pytest.mark.parametrize("seconds", [0.0, 0.3], ids=["at once", "late"])
def test_a_copy_ahead_of_many_bad_sectors_is_kept_in_step(
    tmp_path: Path, sectors: Sectors, seconds: float
) -> None:
    sectors.break_(BAD, 40 * BLOCK, seconds)
    flags = ("-t", "1")
    with target(tmp_path, SIZE_BYTES, file=sectors.plugin, flags=flags) as source:
        with proxy(tmp_path, source, "mode=standby", "refresh=1") as server:
            for byte in (b"1", b"2"):
                wait_for(lambda: missing(server) <= 64, "all but the requests with bad ones")
                source.connect().pwrite(byte * BLOCK, 0)
                wait_for(lambda want=byte: copied(tmp_path)[:BLOCK] == want * BLOCK, "the copy")
            assert server.status()["rounds"] == 0  # not all that can be had has been tried
            assert "the source can't read " in str(server.status()["faults"]["copy"])


def test_a_copy_ahead_is_kept_in_step_all_the_same(tmp_path: Path, sectors: Sectors) -> None:
    model = source_bytes(SIZE_BYTES)
    with target(tmp_path, SIZE_BYTES, file=sectors.plugin) as source:
        with proxy(tmp_path, source, "mode=standby", "refresh=1") as server:
            wait_for(lambda: server.status()["rounds"] > 1, "rounds")
            at_home = source.connect()
            at_home.pwrite(b"new".ljust(BLOCK), 0)
            model[:BLOCK] = b"new".ljust(BLOCK)
            rounds = server.status()["rounds"]
            wait_for(lambda: server.status()["rounds"] > rounds + 1, "more rounds")
            wait_for(lambda: missing(server) == 1, "the copy")
            wait_for(lambda: server.status()["behind_bytes"] < 2 * BLOCK, "its word")
            assert copied(tmp_path)[:BLOCK] == model[:BLOCK]
            server.control.call("activate", wait=True)
            server.connect().pwrite(bytes(BLOCK), BAD)
            server.wait()
    model[BAD : BAD + BLOCK] = bytes(BLOCK)
    assert copied(tmp_path) == model


def test_a_sector_that_takes_long_to_fail_is_waited_for_longer_each_time(
    tmp_path: Path, sectors: Sectors
) -> None:
    sectors.break_(BAD, BLOCK, seconds=2.5)
    with one_after_the_other(tmp_path, sectors) as source:
        ours = impatient(tmp_path)
        with proxy(tmp_path, source, "order=sequential", "readahead=0", file=ours) as server:
            wait_for(lambda: missing(server) <= 32, "all but one request", timeout_s=60)
            told = "has not answered a read"
            wait_for(lambda: told in str(server.status()["error"]), "word of it")
            guest = server.connect()
            assert waits(guest, BAD - BLOCK) < 30
            guest.pwrite(bytes(BLOCK), BAD)
            server.wait()
    model = source_bytes(SIZE_BYTES)
    model[BAD : BAD + BLOCK] = bytes(BLOCK)
    assert copied(tmp_path) == model


def test_a_place_that_is_never_answered_holds_nothing_else_up(
    tmp_path: Path, sectors: Sectors
) -> None:
    sectors.break_(BAD, BLOCK, NEVER_S)
    keys = ("order=sequential", "readahead=0", "window=256K")
    with one_after_the_other(tmp_path, sectors) as source:
        with proxy(tmp_path, source, *keys, file=impatient(tmp_path)) as server:
            wait_for(lambda: missing(server) <= 32, "all but one request", timeout_s=15)
            guest = server.connect()
            assert waits(guest, BAD - BLOCK) < 5
            guest.pwrite(bytes(128 << 10), BAD - (64 << 10))
            guest.pwrite(bytes(128 << 10), BAD)
            server.wait()
    model = source_bytes(SIZE_BYTES)
    model[BAD - (64 << 10) : BAD + (128 << 10)] = bytes(192 << 10)
    assert copied(tmp_path) == model


def test_a_copy_ahead_is_kept_in_step_but_for_such_a_place(
    tmp_path: Path, sectors: Sectors
) -> None:
    sectors.break_(BAD, BLOCK, NEVER_S)
    keys = ("mode=standby", "refresh=1")
    with one_after_the_other(tmp_path, sectors) as source:
        with proxy(tmp_path, source, *keys, file=impatient(tmp_path)) as server:
            wait_for(lambda: missing(server) <= 32, "all but one request", timeout_s=15)
            source.connect().pwrite(b"1" * BLOCK, 0)
            wait_for(lambda: copied(tmp_path)[:BLOCK] == b"1" * BLOCK, "the copy", timeout_s=15)


def test_who_reads_on_beside_such_a_place_does_not_wait_for_what_is_read_ahead(
    tmp_path: Path, sectors: Sectors
) -> None:
    sectors.break_(BAD, BLOCK, NEVER_S)
    with one_after_the_other(tmp_path, sectors) as source:
        with proxy(tmp_path, source, "order=sequential", "rate=8M") as server:
            wait_for(lambda: server.status()["source_silent_s"] > 2, "silence")
            guest = server.connect()
            assert max(waits(guest, SIZE_BYTES // 2 + at * BLOCK) for at in range(20)) < 5


def test_a_guest_s_read_of_such_a_place_keeps_no_other_s(tmp_path: Path, sectors: Sectors) -> None:
    sectors.break_(BAD, BLOCK, NEVER_S)
    keys = ("background=off", "readahead=0")
    with one_after_the_other(tmp_path, sectors) as source:
        with proxy(tmp_path, source, *keys, file=impatient(tmp_path)) as server:
            unlucky = server.connect()
            unlucky.aio_pread(bytearray(BLOCK), BAD)
            guest = server.connect()
            assert sum(waits(guest, at << 20) for at in range(2, 8)) < 10
            guest.pwrite(bytes(BLOCK), BAD)


def test_what_was_slow_once_is_not_waited_for_by_others_when_it_is_read_again(
    tmp_path: Path, sectors: Sectors
) -> None:
    sectors.break_(BAD, BLOCK, seconds=4)
    keys = ("background=off", "readahead=0")
    with one_after_the_other(tmp_path, sectors) as source:
        with proxy(tmp_path, source, *keys, file=impatient(tmp_path, 3.0)) as server:
            refuses(server.connect(), BAD)
            again = threading.Thread(target=refuses, args=(server.connect(), BAD))
            again.start()
            guest = server.connect()
            wait_for(lambda: server.status()["source_silent_s"] > 0.1, "silence")
            assert max(waits(guest, at << 20) for at in range(2, 8)) < 2
            again.join()
            wait_for(lambda: server.status()["source_connections"] == 2, "an end of the third")
            sectors.mend()
            waits(guest, BAD)


def test_a_write_that_waits_for_such_a_place_keeps_no_disk_from_moving_on(
    tmp_path: Path, sectors: Sectors
) -> None:
    sectors.break_(BAD, BLOCK, NEVER_S)
    keys = ("background=off", "readahead=0")
    (tmp_path / "next").mkdir()
    with one_after_the_other(tmp_path, sectors) as source:
        with proxy(tmp_path, source, *keys, file=impatient(tmp_path)) as server:
            guest = server.connect()
            unlucky = server.connect()
            unlucky.aio_pwrite(b"x" * 100, BAD + 10)
            guest.pwrite(b"x" * 100, 10)
            with proxy(tmp_path / "next", server, "mode=standby", *keys) as following:
                following.control.call("activate", wait=True)
                assert server.status()["state"] == "relaying"
                with pytest.raises(nbd.Error, match="EPERM"):
                    guest.pwrite(bytes(BLOCK), BLOCK)
                following.connect().pwrite(b"y" * BLOCK, 2 * BLOCK)
                following.kill()
            server.kill()
