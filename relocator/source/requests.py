"""What a source is asked for over a connection: a read, or a block status query."""

from collections.abc import Callable
from dataclasses import dataclass, field

from relocator.errors import UpstreamError
from relocator.source.handles import Limits
from relocator.store.geometry import Extent


@dataclass(eq=False)
class Request:
    """A read, or a block status query, on its way.

    `done(request)` is called exactly once, on the connection's thread, with either `error` set or
    the result in `data` (a read) or `runs` (`(length, flags)` in bytes from `offset` on, which may
    cover less than was asked); a RefusedError is the source's own answer. `stuck()` is called there
    now and then once it has been owed for long. `stalls`: how often nothing came for too long while
    it was the oldest that was owed, since `silent_since_s`.
    """

    kind: str
    offset: int
    length: int
    done: Callable[["Request"], None]
    deadline_s: float | None = None
    data: bytearray = field(default_factory=bytearray)
    runs: list[tuple[int, int]] = field(default_factory=list)
    error: UpstreamError | None = None
    stuck: Callable[[], None] = lambda: None
    stalls: int = 0
    silent_since_s: float = 0.0

    @property
    def what(self) -> str:
        """What it asks for, in words."""
        return f"{self.kind} of {self.length} bytes at {self.offset}"

    @property
    def extent(self) -> Extent:
        """Where."""
        return Extent(self.offset, self.length)

    def overlaps(self, place: Extent) -> bool:
        """Whether it asks for some of `place`."""
        end = self.offset + self.length
        return place.offset < end and self.offset < place.offset + place.length

    @property
    def reply_bytes(self) -> int:
        """What its reply weighs on the link; of a block status, which asks for much, next to
        nothing."""
        return self.length if self.kind == "read" else 0

    def trim(self, limits: Limits) -> None:
        """Cut off what was added in front of and behind the result for the server's sake."""
        if self.kind == "read" and len(self.data) == self.length:
            return
        skip = self.offset - limits.widen(self.offset, self.length).offset
        if self.kind == "read":
            self.data = self.data[skip : skip + self.length]
            return
        while skip > 0 and self.runs:
            length, flags = self.runs.pop(0)
            if length > skip:
                self.runs.insert(0, (length - skip, flags))
            skip -= length
