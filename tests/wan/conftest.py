"""What every test of cuts has: two sites and the link between them."""

from collections.abc import Iterator

import pytest

from tests.support.link import Link, sites


@pytest.fixture
def link() -> Iterator[Link]:
    with sites() as found:
        yield found
