"""Content of the seeds at other places: an index of their units by digest.

A table of fixed size says for a digest where the seeds may have it: a hash table in which a digest
has a few places, and a later entry takes an earlier one's if all are taken. So memory is bounded,
whatever the seeds measure, and an entry is no more than a hint: what is read there is compared by
its whole digest.

A thread of its own reads the seeds once, from the first time on that something is missing at its
own place. What it has not come to yet isn't found.
"""

import threading
import time
from array import array
from bisect import bisect
from collections.abc import Sequence

from relocator.copying.pacing import TokenBucket
from relocator.copying.seeds import MOST_BYTES, Seed
from relocator.source.digests import digest

#: 32 MiB of table
MOST_SLOTS = 1 << 22
_PROBES = 4
_PLACE_BITS = 40  # the rest of an entry is some more of the digest


class Elsewhere:
    """Finds units of `unit_bytes`, at multiples of that, anywhere in `seeds`.

    Reads them at `rate_bits_per_s`, at most. Zeros are found, too.
    """

    def __init__(
        self, seeds: Sequence[Seed], unit_bytes: int, rate_bits_per_s: float | None
    ) -> None:
        self._seeds = seeds
        self._unit_bytes = unit_bytes
        self._bucket = TokenBucket(rate_bits_per_s)
        self._firsts = []
        units = 0
        for seed in seeds:
            self._firsts.append(units)
            units += -(-seed.size_bytes // unit_bytes)
        self._mask = min(MOST_SLOTS, 1 << (units * 2).bit_length()) - 1
        self._slots = array("Q")
        self._zeros = memoryview(bytes(unit_bytes))
        self._digest_of_zeros = digest(self._zeros)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="elsewhere", daemon=True)

    def begin(self) -> None:
        """Read the seeds from now on; nothing if that has begun."""
        if not self._slots:
            self._slots = array("Q", bytes(8 * (self._mask + 1)))
            self._thread.start()

    def end(self) -> None:
        """Read no more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def find(self, known: bytes) -> memoryview | None:
        """A unit with the digest `known`, as it was read and hashed just now."""
        if known == self._digest_of_zeros:
            return self._zeros
        if not self._slots:
            return None
        slots, tag = self._hash(known)
        for entry in (self._slots[slot] for slot in slots):
            if entry and entry >> _PLACE_BITS == tag:
                data = self._read((entry & ((1 << _PLACE_BITS) - 1)) - 1)
                if data is not None and digest(data) == known:
                    return data
        return None

    def _read(self, place: int) -> memoryview | None:
        at = bisect(self._firsts, place) - 1
        return self._seeds[at].read((place - self._firsts[at]) * self._unit_bytes, self._unit_bytes)

    def _hash(self, known: bytes) -> tuple[list[int], int]:
        """The slots that a digest may have, and its tag."""
        number = int.from_bytes(known[:8], "little")
        return [(number + step) & self._mask for step in range(_PROBES)], number >> _PLACE_BITS

    # Below this line everything runs on the index's own thread.

    def _run(self) -> None:
        for seed, first in zip(self._seeds, self._firsts, strict=True):
            for start, end in seed.data_runs():
                unit = start // self._unit_bytes
                while unit * self._unit_bytes < end and not self._stopping.is_set():
                    unit = self._note(seed, first, unit, end)

    def _note(self, seed: Seed, first: int, unit: int, end: int) -> int:
        """Enter some units from `unit` on; returns the next."""
        if (wait_s := self._bucket.delay_s(time.monotonic())) > 0:
            self._stopping.wait(wait_s)
        stop = min(unit + max(1, MOST_BYTES // self._unit_bytes), -(-end // self._unit_bytes))
        length = (stop - unit) * self._unit_bytes
        self._bucket.take(length, time.monotonic())
        if (data := seed.read(unit * self._unit_bytes, length)) is None:
            return -(-end // self._unit_bytes)
        for at in range(stop - unit):
            piece = data[at * self._unit_bytes : (at + 1) * self._unit_bytes]
            slots, tag = self._hash(digest(piece))
            free = next((slot for slot in slots if self._slots[slot] == 0), slots[0])
            self._slots[free] = tag << _PLACE_BITS | (first + unit + at + 1)
        return stop
