"""A source's disk with bad sectors: that is all that is missing, and nobody waits for it."""

import time
from pathlib import Path

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

connection.STALL_S = hydration.STUCK_S = 1.0
"""


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


def changed(directory: Path, text: str) -> Path:
    (directory / "ours").mkdir()
    return mistaken(directory / "ours", text)


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
    flags = ("-t", "1")  # as `relocator target` starts it: one after the other
    with target(tmp_path, SIZE_BYTES, file=sectors.plugin, flags=flags) as source:
        ours = changed(tmp_path, IMPATIENT)
        with proxy(tmp_path, source, "order=sequential", "readahead=0", file=ours) as server:
            told: set[str] = set()

            def others() -> bool:
                told.add(str(server.status()["error"]))
                return missing(server) <= 32

            wait_for(others, "all but one request", timeout_s=60)
            guest = server.connect()
            began_s = time.monotonic()
            assert guest.pread(BLOCK, BAD - BLOCK) == source_bytes(SIZE_BYTES)[BAD - BLOCK : BAD]
            assert time.monotonic() - began_s < 30.0
            guest.pwrite(bytes(BLOCK), BAD)
            server.wait()
            assert any("has not answered a read" in one for one in told), told
    model = source_bytes(SIZE_BYTES)
    model[BAD : BAD + BLOCK] = bytes(BLOCK)
    assert copied(tmp_path) == model
