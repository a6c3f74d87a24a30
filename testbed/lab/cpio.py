"""A deterministic writer of `newc` cpio archives, the format of an initramfs.

The lab's virtual clock counts instructions, and unpacking an initramfs is instructions: two runs
take the same virtual time only if they start from the same bytes. So an archive here is a function
of names, permissions and contents alone. Entries are sorted, missing parent directories are added,
owner and times are 0, inode numbers count up from 1. The kernel unpacks archives one after the
other, so archives may simply be concatenated.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

TRAILER = "TRAILER!!!"
ALIGNMENT_BYTES = 4


@dataclass(frozen=True)
class File:
    """A regular file: its bytes and whether it may be executed."""

    content: bytes
    executable: bool = False


def archive(files: Mapping[str, File], directories: tuple[str, ...] = ()) -> bytes:
    """The archive of `files` (relative POSIX path -> File) and of empty `directories`."""
    modes: dict[str, tuple[int, bytes]] = {}
    for name in directories:
        _add_directories(modes, name)
    for name, file in files.items():
        _add_directories(modes, str(PurePosixPath(_checked(name)).parent))
        permissions = 0o755 if file.executable else 0o644
        modes[name] = (stat.S_IFREG | permissions, file.content)
    parts = [
        _entry(inode, name, mode, content)
        for inode, (name, (mode, content)) in enumerate(sorted(modes.items()), start=1)
    ]
    return b"".join([*parts, _entry(0, TRAILER, 0, b"")])


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name in ("", "."):
        raise ValueError(f"'{name}' is no plain relative path")
    return name


def _add_directories(modes: dict[str, tuple[int, bytes]], name: str) -> None:
    if name == ".":
        return
    path = PurePosixPath(_checked(name))
    for directory in (path, *path.parents[:-1]):
        modes[str(directory)] = (stat.S_IFDIR | 0o755, b"")


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    """One header, name and content; the field order is that of the kernel's initramfs document."""
    raw_name = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    owner = group = time = device_major = device_minor = special_major = special_minor = 0
    fields = [inode, mode, owner, group, links, time, len(content)]
    fields += [device_major, device_minor, special_major, special_minor, len(raw_name), 0]
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + raw_name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT_BYTES)
