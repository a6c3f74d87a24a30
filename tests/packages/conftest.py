"""The packages, built once, and the wheel, installed once."""

from pathlib import Path

import pytest

from tests.support import packages


@pytest.fixture(scope="package")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return packages.build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="package")
def installed(
    built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> packages.Installed:
    return packages.install(built[".whl"], tmp_path_factory.mktemp("installed"))
