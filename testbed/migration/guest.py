"""What a scripted migration asks of the guest, in the order in which it asks.

    make_disk     its disk, at the source (stage.image)
    at_home       around all that follows: it has its disk at the source, and does nothing
    at_work       around what is observed: its workloads run
    arrive        what stands ready at the destination, on the disk that the system serves there
    move          its memory, the pause, the system's handover, and on at the destination
    rest          its workloads end; what they did is in the results
    leave         it has let go of its disk: the system keeps the image
    check_image   what the image must hold

There are two. `dm` is a file system on a device-mapper device whose line is exchanged at the
switch: programs and page cache stay where they are, as in the memory of a VM that moves, and what
the memory copy sends is noise. `qemu` is a real one: QEMU's own live migration, by its own rules.
"""

from contextlib import AbstractContextManager
from typing import Protocol


class Guest(Protocol):
    """A guest and where it is."""

    @property
    def move_s(self) -> float:
        """How long its memory will take, so that the move can begin in time."""
        ...

    def make_disk(self) -> None: ...
    def at_home(self) -> AbstractContextManager[None]: ...
    def at_work(self) -> AbstractContextManager[None]: ...
    def check(self) -> None:
        """Raises if something of it has ended that should not have."""
        ...

    def arrive(self) -> None: ...
    def move(self) -> None: ...
    def rest(self) -> None: ...
    def leave(self) -> None: ...
    def check_image(self) -> None: ...
