"""The disk that copybench's systems copy: data with a hole of a quarter of its size in the middle.

What the data is (`CONTENTS`):

    noise       random bytes, which nothing compresses
    programs    the machine's own programs, one after the other, as a guest's disk has them
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

PIECE_BYTES = 4 * 2**20
PROGRAMS = Path("/usr/bin")


def noise(seed: int) -> Iterator[bytes]:
    source = random.Random(seed)
    while True:
        yield source.randbytes(PIECE_BYTES)


def programs(seed: int) -> Iterator[bytes]:
    """Those of PROGRAMS by name, beginning with one that the seed chooses; then all over again."""
    paths = sorted(path for path in PROGRAMS.iterdir() if path.is_file() and not path.is_symlink())
    first = random.Random(seed).randrange(len(paths))
    held = b""
    while True:
        for path in paths[first:] + paths[:first]:
            held += path.read_bytes()
            while len(held) >= PIECE_BYTES:
                yield held[:PIECE_BYTES]
                held = held[PIECE_BYTES:]


CONTENTS: dict[str, Callable[[int], Iterator[bytes]]] = {"noise": noise, "programs": programs}


def make_image(path: Path, data_bytes: int, seed: int, content: str = "noise") -> int:
    """Writes the disk; returns its size. `data_bytes`: a multiple of PIECE_BYTES."""
    pieces = CONTENTS[content](seed)
    size_bytes = data_bytes + data_bytes // 4
    with path.open("wb") as file:
        for number in range(data_bytes // PIECE_BYTES):
            hole = data_bytes // 4 if number * PIECE_BYTES >= data_bytes // 2 else 0
            file.seek(number * PIECE_BYTES + hole)
            file.write(next(pieces))
        file.truncate(size_bytes)
    return size_bytes
