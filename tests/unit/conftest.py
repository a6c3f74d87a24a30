"""What several of these tests begin from."""

from pathlib import Path

import pytest

from tests.support import ext_images


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to make a file system of."""
    return ext_images.tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where to make images."""
    return tmp_path_factory.mktemp("images")
