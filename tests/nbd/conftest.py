"""What tests with real servers share."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.sites import Site, three

Loop = Callable[[Path, int], Path]


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, Site, Site]:
    """Where a disk moves."""
    return three(tmp_path)


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Makes a file a block device with sectors of so many bytes."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    with ExitStack() as stack:

        def make(file: Path, sector_bytes: int) -> Path:
            command = ["losetup", "--find", "--show", "--sector-size", str(sector_bytes), str(file)]
            device = subprocess.check_output(command, text=True).strip()
            stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
            return Path(device)

        yield make
