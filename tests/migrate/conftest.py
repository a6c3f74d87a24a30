"""What the tests of moves have in common."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.migrate.way import TwoDisks, Way


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    """A move, and nothing of it after the test."""
    with ExitStack() as ends:
        yield Way(tmp_path, ends)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[TwoDisks]:
    """A move of two disks, and nothing of it after the test."""
    with ExitStack() as ends:
        yield TwoDisks(tmp_path, ends)
