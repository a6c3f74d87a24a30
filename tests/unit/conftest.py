"""What several of these tests begin from."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import ext_images

settings.register_profile(
    "untimed", deadline=None, derandomize=True
)  # how long it takes says how busy the machine is
settings.load_profile("untimed")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to make a file system of."""
    return ext_images.tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where to make images."""
    return tmp_path_factory.mktemp("images")
