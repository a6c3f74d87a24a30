"""The guest's disk: what can be asked for, and real images where no mount is needed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from relocator.filesystem import partitions
from testbed.migration import disk
from testbed.migration.disk import DiskError, Wanted
from testbed.workloads.suite import Room
from tests.support.ext_images import settle

MIB = 2**20


@pytest.mark.parametrize("change", [{"file_system": "xfs"}, {"partition": "lvm"}])
def test_an_unknown_layout_is_refused_by_name(change: dict[str, str]) -> None:
    with pytest.raises(DiskError, match="one of"):
        Wanted(128 * MIB, 96 * MIB, **change)


def test_a_fill_that_leaves_no_room_is_refused_with_what_fits() -> None:
    wanted = Wanted(128 * MIB, 96 * MIB)
    wanted.check(Room(4 * MIB, 2))
    with pytest.raises(DiskError, match=f"fill={96 * MIB}: .* to {76 * MIB} bytes"):
        wanted.check(Room(40 * MIB, 2))


def test_a_partition_leaves_room_for_its_tables() -> None:
    assert Wanted(128 * MIB, 96 * MIB).file_system_bytes == 128 * MIB
    gpt = Wanted(128 * MIB + 7, 96 * MIB, partition="gpt")
    assert (gpt.offset_bytes, gpt.file_system_bytes) == (MIB, 126 * MIB)


@pytest.mark.skipif(shutil.which("sfdisk") is None, reason="sfdisk is not installed")
@pytest.mark.parametrize("partition", disk.PARTITIONS)
@pytest.mark.parametrize("file_system", disk.FILE_SYSTEMS)
def test_the_file_system_is_where_it_is_said_to_be(
    file_system: str, partition: str, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    wanted = Wanted(32 * MIB, 4 * MIB, file_system, partition)
    disk._make_file_system(image, wanted, 100)
    assert image.stat().st_size == 32 * MIB
    where = f"{image}?offset={wanted.offset_bytes}"
    done = subprocess.run(["e2fsck", "-fn", where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    data = image.read_bytes()
    found = settle(
        partitions.survey(len(data)), lambda offset, length: data[offset : offset + length]
    )
    assert [(one.offset, one.kind) for one in found.volumes] == [(wanted.offset_bytes, "ext")]


@pytest.mark.skipif(shutil.which("sfdisk") is None, reason="sfdisk is not installed")
@pytest.mark.parametrize("partition", ["mbr", "gpt"])
def test_a_partition_table_is_the_same_every_time(partition: str, tmp_path: Path) -> None:
    images = [tmp_path / "one.img", tmp_path / "two.img"]
    for image in images:
        with image.open("wb") as file:
            file.truncate(32 * MIB)
        disk._make_partition(image, Wanted(32 * MIB, 4 * MIB, partition=partition))
    assert images[0].read_bytes() == images[1].read_bytes()
