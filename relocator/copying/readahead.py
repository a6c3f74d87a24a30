"""Which blocks to fetch besides those a guest read missed. Pure: told of misses, answers with
ranges.

A miss that begins where an earlier one ended continues a *stream*: what follows is fetched ahead,
twice as much each time, up to `most_bytes`. A stream that isn't continued is forgotten, so random
reads get nothing. When the link has nothing else to carry, a lone miss gets its neighbourhood: the
round trip dwarfs it.
"""

from collections import OrderedDict

LEAST_BYTES = 64 << 10
MOST_BYTES = 1 << 20
NEIGHBOURHOOD_BYTES = 64 << 10
_STREAMS = 16

Range = tuple[int, int]


class Readahead:
    """For a disk of `total_blocks` blocks; `most_bytes` 0 switches it off."""

    def __init__(self, total_blocks: int, block_bytes: int, most_bytes: int | None = None) -> None:
        self._total_blocks = total_blocks
        self._block_bytes = block_bytes
        self._most_blocks = (MOST_BYTES if most_bytes is None else most_bytes) // block_bytes
        self._least_blocks = max(1, LEAST_BYTES // block_bytes)
        #: where a stream would go on -> how many blocks to fetch then
        self._streams: OrderedDict[int, int] = OrderedDict()

    def missed(self, first: int, end: int, *, link_idle: bool) -> Range | None:
        """A guest read missed in `first..end`; returns what to fetch besides, if anything."""
        if self._most_blocks == 0:
            return None
        ahead = self._streams.pop(first, None)
        if ahead is None:
            self._remember(end, self._least_blocks)
            return self._neighbourhood(first) if link_idle else None
        stop = min(end + ahead, self._total_blocks)
        self._remember(stop, min(ahead * 2, max(self._most_blocks, 1)))
        return (end, stop) if end < stop else None

    def _remember(self, end: int, ahead: int) -> None:
        self._streams[end] = min(ahead, self._most_blocks)
        if len(self._streams) > _STREAMS:
            self._streams.popitem(last=False)

    def _neighbourhood(self, first: int) -> Range:
        span = max(1, min(NEIGHBOURHOOD_BYTES // self._block_bytes, self._most_blocks))
        start = first // span * span
        return start, min(start + span, self._total_blocks)
