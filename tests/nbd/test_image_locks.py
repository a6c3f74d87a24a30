"""An image has one writer, also where the other one is a QEMU; who only reads may do so."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.nbd.conftest import Loop
from tests.support.model import source_bytes
from tests.support.servers import nbdkit, plugin, proxy, refused, wait_for

SIZE_BYTES = 1 << 20
_WRITE = "write -q -P 7 0 4096"
NOT_LOCKED = 'Failed to get "write" lock'


@pytest.fixture(params=["file", "device"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An image, or a block device."""
    image = tmp_path / "disk"
    image.write_bytes(source_bytes(SIZE_BYTES))
    if request.param == "file":
        return image
    loop: Loop = request.getfixturevalue("loop")
    return loop(image, 512)


@contextmanager
def qemu(disk: Path) -> Iterator[None]:
    """QEMU's block layer has the disk open, and has written it."""
    process = subprocess.Popen(["qemu-io", "-f", "raw", str(disk)], stdin=subprocess.PIPE)
    try:
        assert process.stdin is not None
        process.stdin.write(f"{_WRITE}\n".encode())
        process.stdin.flush()
        wait_for(lambda: disk.read_bytes()[:4096] == bytes([7]) * 4096, "what QEMU writes")
        yield
    finally:
        process.kill()
        process.communicate()


def written_by_qemu(disk: Path) -> str:
    """What a QEMU complains of that is to write the disk."""
    argv = ["qemu-io", "-f", "raw", "-c", _WRITE, str(disk)]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stderr


def test_what_a_qemu_writes_is_not_served(tmp_path: Path, disk: Path) -> None:
    in_use = f"disk={disk}: is in use by another process"
    with qemu(disk):
        assert in_use in refused(f"disk={disk}")
        assert in_use in refused(f"disk={disk}", f"store={tmp_path / 'maps'}")
    with plugin(tmp_path, "target", f"disk={disk}") as server:
        assert server.connect().pread(4096, 0) == bytes([7]) * 4096


def test_what_is_served_is_not_written_by_a_qemu_that_may_read_it(
    tmp_path: Path, disk: Path
) -> None:
    copy = tmp_path / "copy"
    with plugin(tmp_path, "target", f"disk={disk}"):
        assert NOT_LOCKED in written_by_qemu(disk)
        convert = ["qemu-img", "convert", "-U", "-f", "raw", "-O", "raw", str(disk), str(copy)]
        subprocess.run(convert, check=True)
        assert copy.read_bytes() == source_bytes(SIZE_BYTES)
        with nbdkit(tmp_path, "reader", ["-r", "file", str(disk)]) as reader:
            assert reader.connect().pread(SIZE_BYTES, 0) == source_bytes(SIZE_BYTES)
    assert written_by_qemu(disk) == ""


def test_nor_is_a_copy_that_is_not_complete(tmp_path: Path, disk: Path) -> None:
    (tmp_path / "source.img").write_bytes(source_bytes(SIZE_BYTES))
    with nbdkit(tmp_path, "source", ["file", str(tmp_path / "source.img")]) as source:
        with proxy(tmp_path, source, f"disk={disk}", "background=off"):
            assert NOT_LOCKED in written_by_qemu(disk)
