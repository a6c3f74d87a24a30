"""Stores for tests."""

from pathlib import Path

from relocator.store.meta import Meta, new_token
from relocator.store.opening import open_store
from relocator.store.store import Store


def make_store(directory: Path, size_bytes: int, block_bytes: int = 4096) -> Store:
    """The store at `directory`, or a new one of a copy that has not begun."""
    return open_store(
        directory, Meta(new_token(), size_bytes, block_bytes, source="fake:", complete=False)
    )
