"""A kept guest, woken at site a, and what moves it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.guest.disks import Contents
from testbed.guest.prepared import Prepared, prepared
from testbed.guest.vm import Settings
from tests.vm.moves import World


@pytest.fixture(scope="session")
def origin() -> Prepared:
    """Booted once a machine; then from the cache."""
    return prepared()


@pytest.fixture(scope="session")
def origin_of_two_disks() -> Prepared:
    """A guest that writes to a second disk too."""
    second = Contents(size_bytes=32 << 20, large_bytes=8 << 20, file_system="ext4", system=False)
    return prepared((Contents(), second))


@pytest.fixture(scope="session")
def origin_with_fio() -> Prepared:
    """A guest that has fio, with its libraries, on its disk."""
    contents = Contents(size_bytes=192 << 20, fio=True)
    return prepared((contents,), Settings(memory_mib=256))


@pytest.fixture(scope="session")
def origin_with_agent() -> Prepared:
    """A guest that has qemu-guest-agent on its disk, and a port for it."""
    return prepared((Contents(agent=True),), Settings(agent=True))


@pytest.fixture
def world(origin: Prepared, tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, origin) as world:
        yield world
