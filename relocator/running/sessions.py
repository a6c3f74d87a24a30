"""One client's connection to an export, which may have to begin anew.

A proxy believes what it reads for as long as its source is sealed. Once a seal was undone by force,
the next read might bring what was written since. So from then on its connections, for blocks and
for all else, get no answer but the error by which a client knows that it must connect again; then
it asks who the source is, and finds out. What was read is looked at afterwards: if no such *break*
has come by then, no write has passed yet either (see `Lifecycle.breaks`).

nbdkit 1.32 gives a plugin no way to hang up. A client that has written is no proxy and goes on.
"""

from typing import Any

from relocator.errors import EndedError
from relocator.running.disk import Disk, Run
from relocator.running.lifecycle import Lifecycle


class Session:
    """A connection to `export`: the disk, or another one, which is only read."""

    __slots__ = ("_born", "_export", "_lifecycle", "_writes", "is_disk", "size_bytes")

    def __init__(self, export: Any, lifecycle: Lifecycle) -> None:
        self._export = export
        self._lifecycle = lifecycle
        self._born = lifecycle.breaks
        self._writes = False
        self.size_bytes: int = export.size_bytes
        self.is_disk = isinstance(export, Disk)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes at `offset`.

        Raises:
            EndedError: they may be newer than what the client has read before.
        """
        try:
            self._export.read_into(buffer, offset)
        finally:
            if self._born != self._lifecycle.breaks:
                self._check()

    def runs(self, offset: int, length: int) -> list[Run]:
        """What holds data and what is a hole, from `offset` on; errors as `read_into`."""
        found: list[Run] = self._export.runs(offset, length)
        self._check()
        return found

    def _check(self) -> None:
        if self._born != self._lifecycle.breaks and not self._writes:
            raise EndedError("a seal was undone by force: connect again")

    @property
    def disk(self) -> Disk:
        """The disk, to be changed."""
        self._writes = True
        disk: Disk = self._export
        return disk
