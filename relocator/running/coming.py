"""What comes with a seal, over all the connections that bring a part of it (see rest.py).

A part whose answer is not of the same rest (the source was started again in between, say), or never
comes, has nothing: its blocks are absent and are fetched like others.
"""

from collections.abc import Callable, Iterator, Sequence

from relocator.errors import RelocatorError, UpstreamError
from relocator.jobs import start
from relocator.running.rest import part_bytes
from relocator.source.answer import Answer
from relocator.store.geometry import Extent


class Coming:
    """The rest that `answer` names: `extents` of the disk, in the source's blocks of `block_bytes`.

    A part is read by one thread at a time. `idle` is called while it is waited for; what it raises
    ends that.
    """

    def __init__(
        self,
        answer: Answer,
        extents: Sequence[Extent],
        block_bytes: int,
        idle: Callable[[], None],
    ) -> None:
        self.parts = 1 + len(answer.others)
        size_bytes = sum(extent.length for extent in extents)
        self._each_bytes = part_bytes(size_bytes, self.parts, block_bytes)
        self._extents = extents
        self._answer = answer
        self._idle = idle
        self._answers: dict[int, Answer | RelocatorError] = {0: answer}

    def pieces(self, block_bytes: int) -> Iterator[tuple[Extent, int]]:
        """The extents, and where in the rest each begins; in pieces that lie within a part, where
        that cuts none of the disk's blocks of `block_bytes`."""
        at = 0
        for offset, length in self._extents:
            shift, end = offset - at, at + length
            while at < end:
                cuts = range((self.part_at(at) + 1) * self._each_bytes, end, self._each_bytes)
                cut = next((cut for cut in cuts if (cut + shift) % block_bytes == 0), end)
                yield Extent(at + shift, cut - at), at
                at = cut

    def part_at(self, at: int) -> int:
        """The part that brings the byte `at`."""
        return at // self._each_bytes

    def read(self, at: int, length: int) -> bytes:
        """The bytes from `at` on.

        Raises:
            RelocatorError: they don't come.
        """
        data = b""
        while len(data) < length:
            part, within = divmod(at + len(data), self._each_bytes)
            piece = min(length - len(data), self._each_bytes - within)
            data += self._part(part).rest(within, piece, self._idle)
        return data

    def _part(self, part: int) -> Answer:
        if part not in self._answers:
            try:
                self._answers[part] = self._check(self._answer.others[part - 1].answer())
            except RelocatorError as error:
                self._answers[part] = error
        found = self._answers[part]
        if isinstance(found, RelocatorError):
            raise found
        return found

    def _check(self, found: Answer) -> Answer:
        for key in ("id", "seal", "rest_of"):
            if found[key] != self._answer[key]:
                raise UpstreamError(f"a part of what comes with the seal is of another {key}")
        return found

    def end(self) -> None:
        """Let the last of each come, and hang up, all at once."""
        threads = [start("farewell", one.end, self._idle) for one in self._answer.others]
        self._answer.end(self._idle)
        for thread in threads:
            thread.join()
