"""In which order the background copy visits the disk: iterators over ranges of blocks.

An order is cheap and knows nothing of what is present: the copier skips that. Each yields ranges
`(first, end)` that together cover the disk once.
"""

from collections.abc import Iterator


def sequential(total_blocks: int, step_blocks: int = 1 << 14) -> Iterator[tuple[int, int]]:
    """First to last, in ranges of at most `step_blocks`."""
    for first in range(0, total_blocks, step_blocks):
        yield first, min(first + step_blocks, total_blocks)
