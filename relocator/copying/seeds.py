"""Images at this site that may hold what the source holds: a template, an older copy, a backup.

Nothing is believed of a seed: what is read from it is compared by its digest, and those very bytes
are kept. So it may be written meanwhile, be of any size, and be anything; only its format is looked
at, for the sake of who gives a qcow2 image and wonders why nothing in it is found.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from relocator.errors import ConfigError
from relocator.source.digests import digest
from relocator.store import formats
from relocator.store.sparse import data_runs

#: what is taken at once, at most, if units are small
MOST_BYTES = 256 << 10


class Seed:
    """The raw image at `path`, a file or a block device, read only. Beyond its end it is zeros.

    Raises:
        ConfigError: it can't be read, or is another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: why it is not used any more
        self.failure: str | None = None
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            name = formats.looks_like(self._fd)
            self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise ConfigError(f"seed={path}: can't be read: {error.strerror}") from error
        if name is not None:
            raise ConfigError(
                f"seed={path}: is a {name} image; give a raw one, "
                f"as `qemu-img convert -O raw` makes it"
            )

    def read(self, offset: int, length: int) -> memoryview | None:
        """The bytes at `offset`, as of now; None if it can't be read, from then on."""
        if self.failure is not None:
            return None
        data = memoryview(bytearray(length))
        done = 0
        try:
            while done < length and (more := os.preadv(self._fd, [data[done:]], offset + done)):
                done += more
        except OSError as error:
            self._fail(error)
            return None
        return data

    def _fail(self, error: OSError) -> None:
        self.failure = f"seed={self.path}: is not used any more: {error.strerror}"

    def data_runs(self) -> Iterator[tuple[int, int]]:
        """Where it may have other bytes than zeros: `(start, end)` in bytes, ascending."""
        try:
            for start, end, is_data in data_runs(self._fd, 0, self.size_bytes):
                if is_data:
                    yield start, end
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Close the file; the seed must not be used afterwards."""
        os.close(self._fd)


def matching(
    seeds: Sequence[Seed], unit_bytes: int, size_bytes: int, wanted: Mapping[int, bytes]
) -> Iterator[tuple[int, int, memoryview]]:
    """What the seeds hold of a disk of `size_bytes`, at the same place.

    `wanted` are digests of units of the disk, ascending. Yields runs of units `first, end` with
    their bytes; of several seeds the first that holds a unit counts.
    """
    left = dict(wanted)
    for seed in seeds:
        if not left:
            return
        begin, stop = min(left), max(left) + 1
        offset = begin * unit_bytes
        data = seed.read(offset, min(stop * unit_bytes, size_bytes) - offset)
        if data is None:
            continue
        equal = [
            unit
            for unit, known in left.items()
            if digest(data[(unit - begin) * unit_bytes : (unit - begin + 1) * unit_bytes]) == known
        ]
        for first, end in _runs(equal, max(1, MOST_BYTES // unit_bytes)):
            yield first, end, data[(first - begin) * unit_bytes : (end - begin) * unit_bytes]
        for unit in equal:
            del left[unit]


def _runs(units: Iterable[int], most: int) -> Iterator[tuple[int, int]]:
    """Neighbours among ascending `units` together, at most `most` of them."""
    first = end = -1
    for unit in units:
        if unit != end or end - first == most:
            if first >= 0:
                yield first, end
            first = unit
        end = unit + 1
    if first >= 0:
        yield first, end
