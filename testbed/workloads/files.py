"""Files of known contents: seeded noise, and digests of what was written and is read.

The digest is BLAKE2b: half of SHA-256's instructions on a machine without SHA extensions, as the
lab's is. The noise is incompressible, at a tenth of the cost of drawing every byte: one MiB after
the other is taken from a random place of a random pool and passed through a random permutation of
the byte values of its own.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

MIB = 2**20
_POOL_BYTES = 2 * MIB


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


def write(path: Path, pieces: Iterable[bytes]) -> str:
    """Writes a file and returns its digest."""
    state = hashlib.blake2b()
    with path.open("wb") as file:
        for piece in pieces:
            state.update(piece)
            file.write(piece)
    return state.hexdigest()[:32]


def write_zeros(path: Path, size_bytes: int) -> None:
    """A file of zeros without holes."""
    write(path, (bytes(MIB) for _ in range(size_bytes // MIB)))
