"""The guest's disks: ext3 or ext4, with the system on the first, and on each the workload's files.

    ledger     records that the guest writes, and writes again; zeros at first
    large      records that it only reads, each numbered by its place: any wrong block is seen

Equal contents give equal images on any machine: identifiers and times are fixed, also those that
mke2fs copies from the files it is given.
"""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from testbed.guest.image import INSIDE, GuestImage
from testbed.hosts.supervise import run
from testbed.lab.image import SOURCE_DATE_EPOCH
from testbed.workloads import records
from testbed.workloads.records import RECORD_BYTES, record

MIB = 1 << 20
SYSTEM_BYTES = 20 * MIB  # of it with fio: 80 more
_UUID = "6b8b4567-327b-43c6-a3e8-66334873b0dc"
_DIRECTORIES = ("dev", "proc", "sys", "disks", *(f"disks/vd{letter}" for letter in "bcdefgh"))


@dataclass(frozen=True)
class Contents:
    """A disk as it is asked for; the first one holds the system: 20 MiB, fio 80 more, agent 6."""

    size_bytes: int = 64 * MIB
    large_bytes: int = 16 * MIB
    ledger_bytes: int = 2 * MIB
    file_system: str = "ext3"
    system: bool = True
    fio: bool = False
    agent: bool = False

    def __post_init__(self) -> None:
        if self.file_system not in ("ext3", "ext4"):
            raise ValueError(f"file_system={self.file_system!r}: ext3 or ext4")
        taken = self.large_bytes + self.ledger_bytes + (6 + 80 * self.fio + 6 * self.agent) * MIB
        taken += SYSTEM_BYTES * self.system
        if taken > self.size_bytes:
            raise ValueError(f"size_bytes={self.size_bytes}: its contents take {taken} bytes")


def make(path: Path, contents: Contents, image: GuestImage) -> None:
    """Makes the disk at `path`; an ordinary user can."""
    with tempfile.TemporaryDirectory(prefix="relocator-guest-") as directory:
        root = Path(directory) / "root"
        root.mkdir()
        if contents.system:
            _add_system(root, contents, image)
        (root / "ledger").write_bytes(bytes(contents.ledger_bytes))
        with (root / "large").open("wb") as file:
            for number in range(contents.large_bytes // RECORD_BYTES):
                file.write(record(number, number))
        _make_file_system(path, contents, root)
        _fix_times(path, root)


def _add_system(root: Path, contents: Contents, image: GuestImage) -> None:
    shutil.copytree(image.system, root, symlinks=True, dirs_exist_ok=True)
    if contents.fio:
        shutil.copytree(image.fio, root, symlinks=True, dirs_exist_ok=True)
    if contents.agent:
        shutil.copytree(image.agent, root, symlinks=True, dirs_exist_ok=True)
    for name in _DIRECTORIES:
        (root / name).mkdir()
    ours = root / "guest"
    inside = ours / "testbed/guest/inside"
    for directory in (inside, ours / "testbed/workloads"):
        directory.mkdir(parents=True)
    shutil.copy(INSIDE / "work.py", inside)
    shutil.copy(str(records.__file__), ours / "testbed/workloads")
    shutil.copy(INSIDE / "main", ours)
    if contents.agent:
        (ours / "main").rename(ours / "main-after-agent")
        shutil.copy(INSIDE / "agent", ours / "main")
    for script in ours.glob("main*"):
        script.chmod(0o755)


def _make_file_system(path: Path, contents: Contents, root: Path) -> None:
    with path.open("wb") as file:
        file.truncate(contents.size_bytes)
    layout = ["-b", "4096", "-m", "0", "-N", "2048", "-J", "size=4", "-U", _UUID]
    layout += ["-E", f"hash_seed={_UUID},lazy_itable_init=0,lazy_journal_init=0,nodiscard"]
    argv = ["mke2fs", "-q", "-F", "-t", contents.file_system, *layout]
    run(["env", f"E2FSPROGS_FAKE_TIME={SOURCE_DATE_EPOCH}", *argv, "-d", str(root), str(path)])


def _fix_times(path: Path, root: Path) -> None:
    """Owner and times of every file become fixed ones; mke2fs takes them from the staged files."""
    names = ["/", *(f"/{one.relative_to(root)}" for one in sorted(root.rglob("*")))]
    fields = [("uid", "0"), ("gid", "0")]
    fields += [(name, f"@{SOURCE_DATE_EPOCH}") for name in ("atime", "mtime", "ctime", "crtime")]
    commands = [f"sif {name} {field} {value}\n" for name in names for field, value in fields]
    done = subprocess.run(
        ["debugfs", "-w", "-f", "-", str(path)],
        input="".join(commands),
        env=os.environ | {"E2FSPROGS_FAKE_TIME": str(SOURCE_DATE_EPOCH)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(f"debugfs failed on {path}: {done.stderr[-500:]}")


def dump(image: Path, name: str, target: Path) -> Path:
    """A file of the disk's file system, copied out without mounting it."""
    target.unlink(missing_ok=True)
    run(["debugfs", "-R", f"dump {name} {target}", str(image)])
    if not target.is_file():
        raise OSError(f"{image} holds no file {name}")
    return target


def large_problems(path: Path) -> list[str]:
    """Blocks of a large file that are not what they were made."""
    wrong = []
    with path.open("rb") as file:
        for number in range(path.stat().st_size // RECORD_BYTES):
            if file.read(RECORD_BYTES) != record(number, number):
                wrong.append(number)
    shown = ", ".join(str(number) for number in wrong[:5])
    return [f"{len(wrong)} blocks of the large file are wrong: {shown}"] if wrong else []
