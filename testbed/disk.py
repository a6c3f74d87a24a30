"""The guest's disk: an ext3 image with contents that are known to the last byte.

What is on it, all of it made from the seed:

    data/large          random reads go here
    data/NNN            files of 1 MiB, the rest of the fill
    trees/N.tar         source trees for the compile workload
    ledger              preallocated, written by the ledger
    writes              preallocated, written by fio

`data` and `trees` never change; their digests are the manifest. The digest is BLAKE2b: half of
SHA-256's instructions on a machine without SHA extensions, as the lab's is.

The contents are incompressible, at a tenth of the cost of drawing every byte: one MiB after the
other is taken from a random place of a random pool and passed through a random permutation of
the byte values of its own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.services import mounted
from testbed.supervise import run
from testbed.workloads import tree
from testbed.workloads.compile import drop_caches

MIB = 2**20
BLOCK_BYTES = 4096
LEDGER_BYTES = 2 * MIB
WRITES_BYTES = 2 * MIB
TREES = 6
_POOL_BYTES = 2 * MIB
_UUID = "6b8b4567-327b-43c6-a3e8-66334873b0dc"


class DiskError(ValueError):
    """The disk can't hold what it should, or doesn't hold it."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What the guest's disk must still hold at the end: relative path -> digest."""

    manifest: dict[str, str]
    large_bytes: int


def incompressible(seed: int, size_bytes: int) -> Iterator[bytes]:
    """`size_bytes` of seeded noise in pieces of at most 1 MiB."""
    source = random.Random(seed)
    pool = source.randbytes(_POOL_BYTES)
    identity = list(range(256))
    while size_bytes > 0:
        length = min(MIB, size_bytes)
        start = source.randrange(_POOL_BYTES - MIB)
        source.shuffle(identity)
        yield pool[start : start + length].translate(bytes(identity))
        size_bytes -= length


def digest(path: Path) -> str:
    """The file's digest as it is read from its device."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _write(path: Path, pieces: Iterator[bytes]) -> str:
    state = hashlib.blake2b()
    with path.open("wb") as file:
        for piece in pieces:
            state.update(piece)
            file.write(piece)
    return state.hexdigest()[:32]


def _make_file_system(image: Path, size_bytes: int) -> None:
    with image.open("wb") as file:
        file.truncate(size_bytes)
    journal_mib = max(4, min(64, size_bytes // (64 * MIB)))
    layout = ["-b", str(BLOCK_BYTES), "-m", "0", "-N", "2048", "-J", f"size={journal_mib}"]
    fixed = ["-U", _UUID, "-E", f"hash_seed={_UUID},lazy_itable_init=0"]
    run(["mke2fs", "-q", "-F", "-t", "ext3", *layout, *fixed, str(image)])


def make(image: Path, point: Path, size_bytes: int, fill_bytes: int, seed: int) -> Contents:
    """Makes the image; two thirds of the fill is one large file."""
    room_bytes = size_bytes - fill_bytes - LEDGER_BYTES - WRITES_BYTES
    if room_bytes < 12 * MIB or fill_bytes < 3 * MIB:
        raise DiskError(
            f"fill={fill_bytes}: a disk of {size_bytes} bytes takes a fill of {3 * MIB} to "
            f"{size_bytes - LEDGER_BYTES - WRITES_BYTES - 12 * MIB} bytes"
        )
    _make_file_system(image, size_bytes)
    manifest: dict[str, str] = {}
    large_bytes = fill_bytes * 2 // 3 // MIB * MIB
    with mounted(image, point, "loop"):
        (point / "data").mkdir()
        (point / "trees").mkdir()
        noise = incompressible(seed, fill_bytes - large_bytes)
        manifest["data/large"] = _write(
            point / "data/large", incompressible(seed ^ 0x5EED, large_bytes)
        )
        for number, piece in enumerate(noise):
            name = f"data/{number:03d}"
            manifest[name] = _write(point / name, iter([piece]))
        for number in range(TREES):
            name = f"trees/{number}.tar"
            manifest[name] = _write(point / name, iter([tree.archive(seed * TREES + number)]))
        _write(point / "ledger", (bytes(MIB) for _ in range(LEDGER_BYTES // MIB)))
        _write(point / "writes", (bytes(MIB) for _ in range(WRITES_BYTES // MIB)))
    return Contents(manifest, large_bytes)


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
