"""Power fails after it was noted when an image was written last: the image says the same then.

The image is on a file system of its own, so nothing that is synced in the store makes its time
durable; the disk of that is copied while it is mounted, which is what a power failure leaves.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from relocator.running.lifecycle import Lifecycle
from relocator.store.opening import open_target
from relocator.store.store import Store
from tests.crash.needs import FILE_SYSTEM
from tests.crash.power import REBOOTED, mounted

pytestmark = FILE_SYSTEM
SIZE_BYTES = 1 << 20
NEW = b"n" * 4096
LONG_AGO_NS = 10**18
#: nothing but a sync writes the journal meanwhile
SELDOM = "commit=600"


@contextmanager
def opened(image: Path, directory: Path) -> Iterator[Store]:
    """The disk that is all here; its process is killed at the end."""
    store = open_target(image, directory, 4096)
    try:
        yield store
    finally:
        store.abandon()


def write(store: Store) -> None:
    """A guest writes a block, and flushes."""
    store.mark_dirty(5, 6)
    store.image.write(NEW, 5 * 4096)
    store.commit()


ENDS: dict[str, Callable[[Store], None]] = {
    "sealed": lambda store: Lifecycle(store).seal("token", asked=True),
    "flushed for the last time": lambda store: Lifecycle(store).stand_still(),
    "closed": lambda store: store.update(clean=True),
}


@pytest.mark.parametrize("options", [(), ("lazytime",)], ids=("", "lazytime"))
@pytest.mark.parametrize("end", ENDS)
def test_an_image_that_only_lost_power_was_not_written_by_something_else(
    tmp_path: Path, end: str, options: tuple[str, ...]
) -> None:
    disk, found, at = tmp_path / "disk", tmp_path / "found", tmp_path / "mounted"
    with disk.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
    image, maps = at / "image", tmp_path / "store"
    with mounted(disk, at, "ext4", SELDOM, *options):
        image.write_bytes(bytes(SIZE_BYTES))
        os.utime(image, ns=(LONG_AGO_NS, LONG_AGO_NS))
        subprocess.run(["sync", "--file-system", str(image)], check=True)
        with opened(image, maps) as store:
            write(store)
            ENDS[end](store)
            shutil.copyfile(disk, found)
    with mounted(found, at, "ext4"), patch("relocator.store.store.boot_id", lambda: REBOOTED):
        assert image.read_bytes()[5 * 4096 : 6 * 4096] == NEW
        with opened(image, maps) as store:
            assert store.notes == ()
            assert list(store.dirty.set_runs(0, store.dirty.bits)) == [(5, 6)]
