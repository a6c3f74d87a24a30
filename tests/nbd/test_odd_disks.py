"""Disks of odd sizes, from none to 64 TiB, and of many clients: moved whole, or refused."""

import os
import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from relocator.errors import RelocatorError
from relocator.source.endpoint import Endpoint
from relocator.source.identity import agree, samples_at
from relocator.store.sparse import data_runs
from tests.support.model import source_bytes
from tests.support.servers import moving, nbdkit, plugin, proxy, refused

MODES = ["active", "standby"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size_bytes", [0, 1, 511, 512, 4095, 4097])
def test_a_disk_that_is_hardly_one_moves(tmp_path: Path, size_bytes: int, mode: str) -> None:
    model = source_bytes(max(size_bytes, 512))[:size_bytes]
    (tmp_path / "disk.img").write_bytes(model)
    disk, maps = f"disk={tmp_path / 'disk.img'}", f"store={tmp_path / 'maps'}"
    with plugin(tmp_path, "target", disk, maps) as source:
        before = source.connect()
        if size_bytes:
            before.pwrite(b"a", size_bytes - 1)
            model[-1:] = b"a"
        with proxy(tmp_path, source, f"mode={mode}") as copy:
            if mode == "standby":
                copy.control.call("activate", wait=True)
            copy.wait()
            guest = copy.connect()
            assert guest.get_size() == size_bytes
            if size_bytes:
                assert guest.pread(size_bytes, 0) == model
                guest.pwrite(b"b", 0)
                model[:1] = b"b"
                guest.flush()
                assert guest.pread(size_bytes, 0) == model
            if 0 < size_bytes <= 4096:  # one block, and the guest has written it
                with pytest.raises(RelocatorError, match="nothing is proven: none of 1 blocks"):
                    copy.control.call("verify")
            else:
                assert copy.control.call("verify")["unverified_blocks"] == min(size_bytes, 1)
            assert copy.status()["error"] is None
            with pytest.raises(nbd.Error):
                guest.pwrite(b"beyond", size_bytes)
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_a_disk_without_a_byte_is_known_again(tmp_path: Path) -> None:
    known = []
    for name in ("one", "other"):
        with nbdkit(tmp_path, name, ["memory", "0"]) as source:
            known.append(samples_at(Endpoint(source.uri)))
    assert known == ["", ""]
    assert agree("", "")
    assert not agree("", "a")


TIB = 1 << 40


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory where a file may be as long as it likes."""
    with tempfile.TemporaryDirectory(prefix="relocator-", dir="/dev/shm") as name:
        yield Path(name)


def sparse(path: Path, size_bytes: int, pieces: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for at, data in pieces.items():
            file.seek(at)
            file.write(data)
    return path


def data_of(path: Path) -> dict[int, bytes]:
    """The pages of a sparse file that hold something."""
    found = {}
    with path.open("rb") as file:
        size = path.stat().st_size
        for start, end, is_data in data_runs(file.fileno(), 0, size):
            for at in range(start, end if is_data else start, 4096):
                page = os.pread(file.fileno(), 4096, at)
                if any(page):
                    found[at] = page
    return found


def test_64_tib_of_which_little_is_used_move(tmp_path: Path, memory: Path) -> None:
    size = 64 * TIB
    noise = bytes(source_bytes(65536))
    pieces = {0: noise, 5 * TIB + 8192: noise, 40 * TIB - 4096: noise, size - 65536: noise}
    disk = sparse(memory / "disk", size, pieces)
    there = sparse(memory / "there", size, {})
    with plugin(tmp_path, "target", f"disk={disk}") as source:
        with proxy(tmp_path, source, f"disk={there}") as copy:
            assert copy.status()["block_bytes"] == 128 << 10
            guest = copy.connect()
            assert guest.pread(65536, 5 * TIB + 8192) == noise
            guest.pwrite(b"here" * 1024, 20 * TIB)
            copy.wait(250)
            assert guest.pread(4096, 20 * TIB) == b"here" * 1024
    found = data_of(there)
    assert found.pop(20 * TIB) == b"here" * 1024
    assert found == data_of(disk)


@pytest.mark.parametrize("size_bytes", [512 * TIB + 1, (1 << 63) - 1])
def test_a_disk_that_no_map_is_large_enough_for_is_refused(
    tmp_path: Path, memory: Path, size_bytes: int
) -> None:
    disk = sparse(memory / "disk", size_bytes, {})
    assert f"is a disk of {size_bytes} bytes; there can be at most" in refused(f"disk={disk}")
    with nbdkit(tmp_path, "source", ["file", str(disk)]) as source:
        said = refused(f"store={tmp_path / 'store'}", f"source={source.uri}")
    assert f"is a disk of {size_bytes} bytes; there can be at most" in said


def test_an_image_that_the_file_system_can_not_hold_is_refused(
    tmp_path: Path, memory: Path
) -> None:
    disk = sparse(memory / "disk", 100 * TIB, {})
    with nbdkit(tmp_path, "source", ["file", str(disk)]) as source:
        said = refused(f"store={tmp_path / 'store'}", f"source={source.uri}")
    assert "disk.img can't be made with 109951162777600 bytes: File too large; give" in said


def test_blocks_too_fine_for_memory_are_refused(tmp_path: Path, memory: Path) -> None:
    disk = sparse(memory / "disk", 512 * TIB, {})
    assert "block: maps of" in refused(f"disk={disk}", "block=512")


def test_64_clients_at_once_read_and_write_what_is_theirs(tmp_path: Path) -> None:
    clients, share = 64, 128 << 10
    model = source_bytes(clients * share)
    failures: list[BaseException] = []
    with moving(tmp_path, clients * share, "rate=40M") as copy:
        handles = [copy.connect() for _ in range(clients)]

        def work(number: int) -> None:
            chance, start = random.Random(number), number * share
            try:
                for turn in range(25):
                    at = start + chance.randrange(share // 512 - 8) * 512
                    if turn % 2:
                        assert handles[number].pread(4096, at) == model[at : at + 4096]
                    else:
                        data = chance.randbytes(4096)
                        handles[number].pwrite(data, at)
                        model[at : at + 4096] = data
                handles[number].flush()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
        assert failures == [] and not any(thread.is_alive() for thread in threads)
        copy.wait()
    assert (tmp_path / "store" / "disk.img").read_bytes() == model
