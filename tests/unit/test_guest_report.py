"""The checker of a guest's disk: it finds what is lost, and reads a report that two hosts share."""

from pathlib import Path

import pytest

from testbed.guest import disks, report
from testbed.guest.disks import Contents
from testbed.guest.image import GuestImage
from testbed.guest.vm import server_of
from testbed.migration.disk import DiskError
from testbed.migration.qemu_guest import contents
from testbed.workloads.records import RECORD_BYTES, record, sequence_of

MIB = 1 << 20
SMALL = Contents(size_bytes=12 * MIB, large_bytes=MIB, ledger_bytes=64 << 10, system=False)
NOTHING = GuestImage(Path("/nonexistent"))
ACKS = b"ready\nack,0,0,3,1.5,0.010000\nread,0,7,1.6,0.001000\nack,0,1,5,1.75,0.020000\n"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk whose ledger is still empty."""
    path = tmp_path / "disk.img"
    disks.make(path, SMALL, NOTHING)
    return path


def with_records(image: Path, written: dict[int, int]) -> Path:
    """The disk with records, slot -> sequence, in its ledger."""
    data = bytearray(SMALL.ledger_bytes)
    for slot, sequence in written.items():
        at = slot * RECORD_BYTES
        data[at : at + RECORD_BYTES] = record(sequence, slot)
    ledger = image.with_name("ledger")
    ledger.write_bytes(data)
    commands = image.with_name("commands")
    commands.write_text(f"rm /ledger\nwrite {ledger} /ledger\n")
    disks.run(["debugfs", "-w", "-f", str(commands), str(image)])
    return image


def test_a_report_is_read_across_the_hosts_that_the_guest_was_at() -> None:
    for cut in range(len(ACKS)):
        whole = report.parse([ACKS[:cut], ACKS[cut:]])
        assert [(one.sequence, one.slot) for one in whole.acknowledged[0]] == [(0, 3), (1, 5)]
        assert [one.block for one in whole.reads] == [7]


def test_a_disk_that_holds_what_was_acknowledged_is_well(image: Path) -> None:
    assert report.problems([ACKS], [""], [with_records(image, {3: 0, 5: 1})]) == []


def test_a_lost_record_is_found(image: Path) -> None:
    found = report.problems([ACKS], [""], [with_records(image, {3: 0})])
    assert found == ["disk 0: slot 5 is empty, write 1 was acknowledged"]


def test_a_record_in_another_ones_place_is_found(image: Path) -> None:
    disk = with_records(image, {3: 0, 5: 1})
    wrong = disk.read_bytes().replace(record(1, 5), record(1, 4))
    disk.write_bytes(wrong)
    found = report.problems([ACKS], [""], [disk])
    assert found == ["disk 0: slot 5 holds no valid record of its own"]


def test_a_wrong_block_of_the_large_file_is_found(image: Path) -> None:
    disk = with_records(image, {3: 0, 5: 1})
    disk.write_bytes(disk.read_bytes().replace(record(9, 9), bytes(RECORD_BYTES)))
    found = report.problems([ACKS], [""], [disk])
    assert found == ["disk 0: 1 blocks of the large file are wrong: 9"]


def test_silence_is_no_success(image: Path) -> None:
    assert report.problems([b"ready\n"], [""], [image]) == ["no record was acknowledged"]


@pytest.mark.parametrize(
    "line",
    [
        "[   12.1] I/O error, dev vda, sector 8 op 0x1:(WRITE) flags 0x0 phys_seg 1 prio class 2",
        "[   12.2] EXT4-fs error (device vda): ext4_find_entry:1663: inode #2: comm sh",
        "[   12.3] Aborting journal on device vda-8.",
        "guest: error: the workload ended with 1",
    ],
)
def test_what_the_kernel_says_of_a_failed_disk_is_an_error(line: str) -> None:
    console = f"guest: up\n[    0.5] acpi: fail to add MMCONFIG\n{line}\n"
    assert report.errors(b"ready\nresting\n", console) == [line]


def test_an_error_of_the_workload_is_an_error() -> None:
    said = b"ready\nerror,write 0 20 1: OSError: [Errno 5] Input/output error\n"
    assert len(report.errors(said, "")) == 1


def test_a_record_knows_its_own_place() -> None:
    assert sequence_of(record(7, 3), 3) == 7
    assert sequence_of(record(7, 3), 4) is None
    torn = record(7, 3)[:-1] + b"!"
    assert sequence_of(torn, 3) is None


def test_equal_contents_give_equal_images(image: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.img"
    disks.make(again, SMALL, NOTHING)
    assert again.read_bytes() == image.read_bytes()


def test_contents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size_bytes=\d+: its contents take \d+ bytes"):
        Contents(size_bytes=32 * MIB, large_bytes=16 * MIB)
    with pytest.raises(ValueError, match="ext3 or ext4"):
        Contents(file_system="xfs")
    with pytest.raises(DiskError, match="a guest of QEMU takes at least 23 MiB"):
        contents(64 * MIB, 20 * MIB, "ext3")


def test_a_disk_is_an_nbd_uri() -> None:
    assert server_of("nbd://10.0.0.1/vm")["server"] == {
        "type": "inet",
        "host": "10.0.0.1",
        "port": "10809",
    }
    assert server_of("nbd+unix:///?socket=/run/x")["server"] == {"type": "unix", "path": "/run/x"}
    with pytest.raises(ValueError, match=r"uri='ssh://a': nbd://HOST"):
        server_of("ssh://a")
