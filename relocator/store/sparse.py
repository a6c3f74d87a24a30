"""Files with holes: where there is something in them, so that nobody reads the rest.

The kernel counts as data what is in the page cache and not on the disk yet, also what was written
through a mapping; what was only allocated (`fallocate`) is a hole. Where a file system can't tell,
all is data.
"""

import errno
import os
from collections.abc import Iterator


def data_runs(fd: int, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Cover `offset..end` with `(start, end, is_data)`, ascending; a hole reads as zero."""
    while offset < end:
        try:
            data = min(os.lseek(fd, offset, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno == errno.EINVAL:  # a block device has no holes to tell of
                yield offset, end, True
                return
            if error.errno != errno.ENXIO:
                raise
            data = end
        if data > offset:
            yield offset, data, False
        if data == end:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        yield data, hole, True
        offset = hole
