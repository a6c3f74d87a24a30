"""The guest's disk: an image with a file system of known contents, alone or in a partition.

What is on it, all of it made from the seed:

    data/large          the large file: random reads go here
    data/NNN            files of 1 MiB, the rest of the fill
    (deleted)           noise that once was a file: free to the file system, not to the image
    and what the workloads of the run make there

`data` never changes, nor do the files that a workload says so of: their digests are the manifest.

A partition begins at 1 MiB. The tables' identifiers are fixed: equal seeds give equal images.
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.hosts.services import mounted
from testbed.hosts.supervise import run
from testbed.workloads import files, suite
from testbed.workloads.compile import drop_caches
from testbed.workloads.files import MIB, digest

BLOCK_BYTES = 4096
FILE_SYSTEMS = ("ext3", "ext2", "ext4")
PARTITIONS = ("none", "mbr", "gpt")
PARTITION_OFFSET_BYTES = MIB
_TABLE_END_BYTES = MIB  # GPT's second copy, and the alignment of what comes before it
_SPARE_BYTES = 12 * MIB  # journal, inode tables, directories
_SMALLEST_FILL_BYTES = 3 * MIB
_INODES = 2048
_UUID = "6b8b4567-327b-43c6-a3e8-66334873b0dc"
_TABLES = {
    "mbr": "label: dos\nlabel-id: 0x6b8b4567\nstart={start}KiB, size={size}KiB, type=83\n",
    "gpt": f"label: gpt\nlabel-id: {_UUID}\nstart={{start}}KiB, size={{size}}KiB, "
    f"type=linux, uuid={_UUID}\n",
}


class DiskError(ValueError):
    """The disk can't hold what it should, or doesn't hold it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The disk as it is asked for; two thirds of the fill is one large file."""

    size_bytes: int
    fill_bytes: int
    file_system: str = "ext3"
    partition: str = "none"
    deleted_bytes: int = 0

    def __post_init__(self) -> None:
        for name, known in (("file_system", FILE_SYSTEMS), ("partition", PARTITIONS)):
            if getattr(self, name) not in known:
                shown = f"{name.replace('_', '-')}={getattr(self, name)!r}"
                raise DiskError(f"{shown}: one of {', '.join(known)}")

    @property
    def offset_bytes(self) -> int:
        """Where the file system begins."""
        return 0 if self.partition == "none" else PARTITION_OFFSET_BYTES

    @property
    def file_system_bytes(self) -> int:
        """What the file system has of the disk."""
        if self.partition == "none":
            return self.size_bytes
        return (self.size_bytes - PARTITION_OFFSET_BYTES - _TABLE_END_BYTES) // MIB * MIB

    def check(self, room: suite.Room) -> None:
        """Raises if the fill and the workloads' files don't go on it."""
        taken_bytes = room.size_bytes + self.deleted_bytes
        largest_bytes = self.file_system_bytes - taken_bytes - _SPARE_BYTES
        if not _SMALLEST_FILL_BYTES <= self.fill_bytes <= largest_bytes:
            raise DiskError(
                f"fill={self.fill_bytes}: a disk of {self.size_bytes} bytes takes, beside "
                f"{taken_bytes} bytes of the workloads' and of deleted files, a fill of "
                f"{_SMALLEST_FILL_BYTES} to {largest_bytes} bytes"
            )


@dataclass(frozen=True, slots=True)
class Contents:
    """What the guest's disk must still hold at the end: relative path -> digest; and where."""

    manifest: dict[str, str]
    large_bytes: int
    offset_bytes: int = 0


def partition_script(wanted: Wanted) -> str:
    """What sfdisk is told."""
    start, size = wanted.offset_bytes // 1024, wanted.file_system_bytes // 1024
    return _TABLES[wanted.partition].format(start=start, size=size)


def _make_partition(image: Path, wanted: Wanted) -> None:
    done = subprocess.run(
        ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(image)],
        input=partition_script(wanted),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DiskError(f"sfdisk: exit status {done.returncode}: {done.stderr.strip()}")


def _make_file_system(image: Path, wanted: Wanted, files_wanted: int) -> None:
    with image.open("wb") as file:
        file.truncate(wanted.size_bytes)
    if wanted.partition != "none":
        _make_partition(image, wanted)
    layout = ["-b", str(BLOCK_BYTES), "-m", "0", "-N", str(_INODES + files_wanted)]
    if wanted.file_system != "ext2":
        journal_mib = max(4, min(64, wanted.file_system_bytes // (64 * MIB)))
        layout += ["-J", f"size={journal_mib}"]
    fixed = f"hash_seed={_UUID},lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    place = f",offset={wanted.offset_bytes}" if wanted.offset_bytes else ""
    layout += ["-U", _UUID, "-E", fixed + place]
    size = f"{wanted.file_system_bytes // 1024}k"
    run(["mke2fs", "-q", "-F", "-t", wanted.file_system, *layout, str(image), size])


def _fill(point: Path, wanted: Wanted, seed: int) -> dict[str, str]:
    """The files that nobody changes; returns their digests."""
    (point / "data").mkdir()
    large_bytes = wanted.fill_bytes * 2 // 3 // MIB * MIB
    noise = files.incompressible(seed ^ 0x5EED, large_bytes)
    manifest = {"data/large": files.write(point / "data/large", noise)}
    for number, piece in enumerate(files.incompressible(seed, wanted.fill_bytes - large_bytes)):
        name = f"data/{number:03d}"
        manifest[name] = files.write(point / name, [piece])
    return manifest


@contextmanager
def _aged(point: Path, wanted: Wanted, seed: int) -> Iterator[None]:
    """Around the making of all files: leaves noise among them, of files that are there no more."""
    noise = files.incompressible(seed ^ 0xA6ED, wanted.deleted_bytes)
    old = [point / f"deleted.{number:03d}" for number in range(wanted.deleted_bytes // MIB)]
    for path, piece in zip(old, noise, strict=False):
        files.write(path, [piece])
    run(["sync", "-f", str(point)])
    yield
    for path in old:
        path.unlink()


def make(
    image: Path, point: Path, wanted: Wanted, workloads: Sequence[suite.Workload], seed: int
) -> Contents:
    """Makes the image with everything on it; `point` is where to mount it meanwhile."""
    room = suite.room(workloads)
    wanted.check(room)
    _make_file_system(image, wanted, room.files)
    options = f"loop,offset={wanted.offset_bytes}"
    with mounted(image, point, options, wanted.file_system):
        with _aged(point, wanted, seed):
            manifest = _fill(point, wanted, seed)
            for workload in workloads:
                manifest |= workload.prepare(point, seed)
        large_bytes = (point / "data/large").stat().st_size
    return Contents(manifest, large_bytes, wanted.offset_bytes)


def mismatches(point: Path, contents: Contents) -> list[str]:
    """Files below `point` that are not what the manifest says."""
    return [
        name
        for name, expected in contents.manifest.items()
        if not (point / name).is_file() or digest(point / name) != expected
    ]


def mismatches_after_drop(point: Path, contents: Contents) -> list[str]:
    """`mismatches`, read anew from the device and not from memory."""
    run(["sync", "-f", str(point)])
    drop_caches()
    return mismatches(point, contents)


def allocated_bytes(image: Path) -> int:
    """Bytes of the image that are not holes."""
    return image.stat().st_blocks * 512
