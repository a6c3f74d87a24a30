"""Readers without I/O: generators that ask for extents and are sent the bytes.

What a disk's tables say can only be learnt step by step (a superblock says where the descriptors
are), but within a step the reads are independent, and over a WAN each costs a round trip. So a
reader is a generator: it yields a *round*, the list of extents it wants next, is sent their bytes
in the same order, and returns its result. Who serves it may read a whole round at once.

A reader never trusts a number from the disk: `ask` refuses to leave the volume. What it can't
believe it raises as `Doubt`, inside this package only; the reader's public face turns it into words
for the operator.
"""

from collections.abc import Callable, Generator
from typing import TypeVar

from relocator.store.geometry import Extent

#: A reader in progress: yields rounds, is sent their bytes, returns a T.
T = TypeVar("T")
Rounds = Generator[list[Extent], list[bytes], T]

#: Bytes a round asks for at most, so that who serves it need not hold more.
ROUND_BYTES = 4 << 20


class Doubt(Exception):
    """Something read does not make sense; caught at the public face of each reader."""


def serve(rounds: Rounds[T], read: Callable[[list[Extent]], list[bytes]]) -> T:
    """Serve all rounds of a reader with `read`, whose errors pass through; returns its result."""
    try:
        wanted = next(rounds)
        while True:
            wanted = rounds.send(read(wanted))
    except StopIteration as stop:
        result: T = stop.value
        return result


def ask(wanted: list[Extent], volume_bytes: int) -> Rounds[list[bytes]]:
    """One round within a volume of `volume_bytes`; doubts extents outside it and short answers."""
    for offset, length in wanted:
        if offset < 0 or length <= 0 or offset + length > volume_bytes:
            raise Doubt(
                f"{length} bytes at {offset} are wanted, outside of the {volume_bytes} here"
            )
    answers = yield wanted
    for extent, data in zip(wanted, answers, strict=True):
        if len(data) != extent.length:
            raise Doubt(f"{len(data)} of {extent.length} bytes could be read at {extent.offset}")
    return answers


def ask_one(offset: int, length: int, volume_bytes: int) -> Rounds[bytes]:
    """A round of a single extent."""
    (data,) = yield from ask([Extent(offset, length)], volume_bytes)
    return data
