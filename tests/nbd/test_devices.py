"""A disk on a block device, whose sectors may be larger than the guest's: byte by byte."""

import fcntl
import os
import random
import threading
from pathlib import Path

import pytest

from relocator.store.image import Image
from tests.nbd.conftest import Loop
from tests.support.model import source_bytes
from tests.support.servers import nbdkit, plugin, proxy, refused

SIZE_BYTES = 2 << 20
SECTORS = (512, 4096)


@pytest.mark.parametrize("sector_bytes", SECTORS)
def test_a_guest_zeroes_and_trims_whatever_it_likes(
    tmp_path: Path, loop: Loop, sector_bytes: int
) -> None:
    model = source_bytes(SIZE_BYTES)
    (tmp_path / "disk").write_bytes(model)
    chance = random.Random(sector_bytes)
    with plugin(tmp_path, "target", f"disk={loop(tmp_path / 'disk', sector_bytes)}") as server:
        guest = server.connect()
        for turn in range(300):
            unit = chance.choice((1, 512, 4096))
            length = unit * chance.randint(1, (64 << 10) // unit)
            at = chance.randrange((SIZE_BYTES - length) // unit + 1) * unit
            data = bytes(length) if turn % 3 else chance.randbytes(length)
            if turn % 3 == 0:
                guest.pwrite(data, at)
            elif turn % 3 == 1:
                guest.zero(length, at)
            else:
                guest.trim(length, at)
            model[at : at + length] = data
            assert guest.pread(length, at) == data
        guest.flush()
        assert guest.pread(SIZE_BYTES, 0) == model
        assert (tmp_path / "disk").read_bytes() == model  # not only in the page cache


@pytest.mark.parametrize("ends", [bytes(512), bytes(5 * 512), b"data" * 128])
def test_a_disk_that_ends_within_a_sector_moves_between_devices(
    tmp_path: Path, loop: Loop, ends: bytes
) -> None:
    model = source_bytes(1 << 20) + ends
    behind = b"not of the disk" * 4096
    (tmp_path / "disk").write_bytes(model)
    (tmp_path / "there").write_bytes(bytearray(b"old" * (SIZE_BYTES // 3 + 1))[:SIZE_BYTES])
    with (tmp_path / "there").open("r+b") as file:
        file.seek(len(model))
        file.write(behind)
    disk, maps = f"disk={loop(tmp_path / 'disk', 512)}", f"store={tmp_path / 'maps'}"
    there = f"disk={loop(tmp_path / 'there', 4096)}"
    with plugin(tmp_path, "target", disk, maps) as source:
        with proxy(tmp_path, source, there, "mode=standby", "window=64K") as copy:
            source.connect().zero(512, 512)
            model[512:1024] = bytes(512)
            copy.control.call("activate", wait=True)
            guest = copy.connect()
            assert guest.get_size() == len(model)
            guest.pwrite(b"part", len(model) - 100)
            model[-100:-96] = b"part"
            guest.zero(700, 5000)
            model[5000:5700] = bytes(700)
            assert copy.wait()["error"] is None
            assert guest.pread(len(model), 0) == model
            copy.control.call("verify")
            copy.control.call("reserve")
            guest.flush()
    assert (tmp_path / "there").read_bytes()[: len(model) + len(behind)] == model + behind


def test_a_device_that_is_too_small_is_refused(tmp_path: Path, loop: Loop) -> None:
    (tmp_path / "disk").write_bytes(bytes(8192))
    (tmp_path / "there").write_bytes(bytes(4096))
    there = loop(tmp_path / "there", 512)
    with nbdkit(tmp_path, "source", ["file", str(tmp_path / "disk")]) as source:
        said = refused(f"store={tmp_path / 'store'}", f"source={source.uri}", f"disk={there}")
    assert f"{there.name} is 4096 bytes long, not 8192" in said


def test_a_device_that_udev_looks_at_is_waited_for(tmp_path: Path, loop: Loop) -> None:
    """As it does whenever a server that had it has ended; of another server it is refused."""
    (tmp_path / "disk").write_bytes(bytes(4096))
    device = loop(tmp_path / "disk", 512)
    looks = os.open(device, os.O_RDONLY)
    fcntl.flock(looks, fcntl.LOCK_SH)
    timer = threading.Timer(0.3, os.close, (looks,))
    timer.start()
    image = Image(device)
    timer.join()
    assert f"disk={device}: is in use by another process" in refused(f"disk={device}")
    image.close()


def test_zeros_are_written_where_the_device_can_not_zero(tmp_path: Path, loop: Loop) -> None:
    """Somebody else has claimed it, and there are dirty pages: the kernel says EBUSY."""
    (tmp_path / "disk").write_bytes(source_bytes(SIZE_BYTES))
    device = loop(tmp_path / "disk", 512)
    claimed = os.open(device, os.O_RDONLY | os.O_EXCL)
    image = Image(device)
    try:
        for punch in (True, False):
            image.write(b"dirty" * 4096, 4096)
            image.zero(3000, 30_000, punch=punch)
            buffer = bytearray(30_000)
            image.read_into(buffer, 3000)
            assert not any(buffer)
    finally:
        image.close()
        os.close(claimed)
