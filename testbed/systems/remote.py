"""No relocation: the disk stays where it is."""

from pathlib import Path

from testbed.systems.base import System


class Remote(System):
    """The guest moves, and from then on reads and writes its disk over the WAN."""

    name = "remote"
    relocates = False

    @property
    def serves_at(self) -> str:
        return "st_src-lan"

    @property
    def image(self) -> Path:
        return self.place.image

    def prepare(self) -> None:
        """There is nothing at the destination."""


class Stay(Remote):
    """Not even the guest moves: what the others' lost work is counted against."""

    name = "stay"
    moves = False
