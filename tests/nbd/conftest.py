"""What tests with real servers share."""

from pathlib import Path

import pytest

from tests.support.sites import Site, three


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, Site, Site]:
    """Where a disk moves."""
    return three(tmp_path)
