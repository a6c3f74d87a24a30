"""Which blocks became zeros here because the source calls them free: DIR/skipped.

In them a copy may differ from its source and be none the worse, and the one site's `verify` must
know it of the other. They are noted, durably, before the first of them is made present, and never
taken back. So what is noted may be more than that: blocks that came from the source before, or
were written since. Packed as on the wire (see runs.py).
"""

from collections.abc import Iterable

from relocator.errors import StoreError, UpstreamError
from relocator.store import runs
from relocator.store.bitmap import Bitmap
from relocator.store.meta import replace_file
from relocator.store.store import Runs, Store

NAME = "skipped"


def note(store: Store, free: Iterable[tuple[int, int]]) -> None:
    """Blocks are about to become zeros, as they are free.

    Raises:
        StoreError: that can't be made durable.
    """
    assert store.directory is not None
    known = Bitmap(store.geometry.total_blocks)
    for first, end in (*noted(store), *free):
        known.set(first, end)
    replace_file(store.directory / NAME, runs.pack(known))


def noted(store: Store) -> Runs:
    """The runs of blocks that were noted, ascending.

    Raises:
        StoreError: they can't be read, or are damaged.
    """
    try:
        return runs.unpack(packed(store), store.geometry.total_blocks)
    except UpstreamError as error:
        raise StoreError(
            f"store={store.directory}: {NAME} is damaged, so what was skipped as free can't be "
            "told from what is damaged"
        ) from error


def packed(store: Store) -> bytes:
    """The same, packed.

    Raises:
        StoreError: they can't be read.
    """
    if store.directory is not None:
        try:
            return (store.directory / NAME).read_bytes()
        except FileNotFoundError:
            pass
        except OSError as error:
            what = f"store={store.directory}: {NAME} can't be read: {error.strerror}"
            raise StoreError(what, error.errno or 5) from error
    return runs.pack_runs([], store.geometry.total_blocks)
