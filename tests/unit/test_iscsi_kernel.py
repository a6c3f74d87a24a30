"""The kernel's target is left alone where it isn't ours to take down."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from relocator.errors import RelocatorError
from relocator.iscsi import kernel
from relocator.iscsi.lun import Lun

LUN = Lun("nbd://127.0.0.1", "iqn.2024-01.org.example:disk", "127.0.0.1", 3260)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks and the kernel's targets are directories of the test's, and modules are loaded."""
    monkeypatch.setattr(kernel, "_LOCKS", tmp_path)
    monkeypatch.setattr(kernel, "_TARGETS", tmp_path / "target")
    monkeypatch.setattr(kernel, "_load", lambda: None)


def test_a_name_that_is_served_is_refused() -> None:
    with (
        kernel._alone(LUN),
        pytest.raises(RelocatorError, match="disk: is served by the kernel here"),
        kernel.served(LUN),
    ):
        pass
    with kernel._alone(LUN):  # and is free again
        pass


def test_somebody_else_s_target_stays(tmp_path: Path) -> None:
    portal = tmp_path / "target/iscsi" / LUN.name / "tpgt_1"
    portal.mkdir(parents=True)
    with (
        pytest.raises(RelocatorError, match="of that name, which is none of ours"),
        kernel.served(LUN),
    ):
        pass
    assert portal.exists()


#: the kernel's part is the test's: who comes second to a device is refused it
_QEMU_NBD = """#!/bin/sh
device=${{1#--connect=/dev/}}
sleep 0.2
if ! mkdir {blocks}/$device/taken 2>/dev/null; then
    echo "qemu-nbd: Failed to set NBD socket" >&2
    exit 1
fi
echo "NBD device /dev/$device is now connected to $4" >&2
echo $$ >{blocks}/$device/pid
echo 2048 >{blocks}/$device/size
exec sleep 60
"""


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two devices, and a qemu-nbd that connects them."""
    blocks, programs = tmp_path / "block", tmp_path / "bin"
    for name in ("nbd0", "nbd1"):
        (blocks / name).mkdir(parents=True)
        (blocks / name / "size").write_text("0\n")
    programs.mkdir()
    (programs / "qemu-nbd").write_text(_QEMU_NBD.format(blocks=blocks))
    (programs / "qemu-nbd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(kernel, "_BLOCKS", blocks)
    return blocks


def test_two_that_are_started_at_once_have_a_device_each(devices: Path) -> None:
    other = replace(LUN, name="iqn.2024-01.org.example:other")
    both = Barrier(2)

    def serve(lun: Lun) -> Path:
        both.wait()
        with kernel._device(lun) as (device, process):
            both.wait()
            assert process.popen.poll() is None
            return device

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(serve, (LUN, other))) == {Path("/dev/nbd0"), Path("/dev/nbd1")}


def test_a_device_that_somebody_else_has_just_connected_is_not_served(devices: Path) -> None:
    nbd0 = devices / "nbd0"
    (nbd0 / "taken").mkdir()
    (nbd0 / "size").write_text("2048\n")
    with (
        pytest.raises(RelocatorError, match="Failed to set NBD socket"),
        kernel._device(LUN),
    ):
        pytest.fail("another process's disk is served")
