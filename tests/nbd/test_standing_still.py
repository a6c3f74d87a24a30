"""A source that is not ours can't be sealed: what is written there until the switch arrives here.

An activation that was begun may have been given up, and its guest gone on at the source.
"""

import errno
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator import group
from relocator.client import Client
from relocator.errors import RelocatorError
from relocator.source.endpoint import Endpoint
from relocator.source.identity import samples_at
from relocator.store import meta as metadata
from tests.nbd.test_bitmaps import (  # noqa: F401
    BLOCK,
    TOTAL,
    Guest,
    behind,
    guest,
    present,
    qemu,
    standby,
)
from tests.support.model import source_bytes
from tests.support.servers import Server, mistaken, nbdkit, plugin, proxy, wait_for
from tests.support.storage_daemon import StorageDaemon

SIZE_BYTES = TOTAL * BLOCK
NEW = b"N" * BLOCK
FULL_ONCE = f"""
from relocator.store import store
from relocator.errors import StoreError
write, left = store.metadata.write, [1]
def full_once(directory, meta):
    if not meta.standby and not meta.creating and left:
        left.pop()
        raise StoreError("meta.json can't be replaced: no space", {errno.ENOSPC})
    write(directory, meta)
store.metadata.write = full_once
"""
#: what a source is known by takes until the disk is given back to be noted, or to be read
SLOW_SAMPLES = {
    "noted": """
from relocator.store.store import Store
update = Store.update
def late(self, **changes):
    if changes.get("origin_samples") and not Path({read!r}).exists():
        Path({read!r}).touch()
        give_up_s = time.monotonic() + 2
        while not self.meta.standby and time.monotonic() < give_up_s:
            time.sleep(0.01)
    update(self, **changes)
Store.update = late
""",
    "read": """
from relocator.running import afterwards
samples = afterwards.samples
def late(handle):
    found, first = samples(handle), not Path({read!r}).exists()
    Path({read!r}).touch()
    while first and not Path({goes_on!r}).exists():
        time.sleep(0.01)
    return found
afterwards.samples = late
""",
}


@pytest.fixture
def source(tmp_path: Path) -> Any:
    """Blocks, and nothing else."""
    (tmp_path / "disk").write_bytes(source_bytes(SIZE_BYTES))
    with nbdkit(tmp_path, "source", ["file", str(tmp_path / "disk")]) as server:
        yield server


def goes_on(source: Server) -> bytes:
    """The guest writes at its source, and makes that durable; what the disk holds then."""
    there = source.connect()
    there.pwrite(NEW, 5 * BLOCK)
    there.flush()
    return bytes(there.pread(SIZE_BYTES, 0))


def moves(here: Server, holds: bytes) -> None:
    """The switch: the guest reads what it should, at once, from the store and in the image."""
    here.control.call("activate", wait=True)
    assert here.connect().pread(SIZE_BYTES, 0) == holds
    here.wait()
    assert here.connect().pread(SIZE_BYTES, 0) == holds


def test_nothing_is_copied_before_the_switch_also_if_it_is_wanted(
    tmp_path: Path, source: Server
) -> None:
    with proxy(tmp_path, source, "mode=standby", "background=off") as here:
        here.control.call("set", background="on")
        assert here.status()["background"] == "off"
        moves(here, goes_on(source))


def test_what_is_not_wanted_is_not_copied_after_it(tmp_path: Path, source: Server) -> None:
    with proxy(tmp_path, source, "mode=standby") as here:
        here.control.call("set", background="off")
        here.control.call("activate", wait=True)
        assert here.status()["background"] == "off"
        here.control.call("set", background="on")
        here.wait()


@pytest.mark.parametrize("given_back", [True, False])
def test_a_guest_that_went_on_at_home_is_found_as_it_is(
    tmp_path: Path, source: Server, given_back: bool
) -> None:
    with proxy(tmp_path, source, "mode=standby") as here:
        here.control.call("activate", hold=True, wait=True)
        here.connect().pread(SIZE_BYTES, 0)
        if given_back:
            here.control.call("withdraw")
            assert here.status()["state"] == "standby"
            with pytest.raises(nbd.Error):
                here.connect().pwrite(NEW, 0)
        moves(here, goes_on(source))


def test_a_disk_that_was_active_and_not_written_is_given_back(
    tmp_path: Path, source: Server
) -> None:
    with proxy(tmp_path, source, "mode=standby", "rate=1M") as here:
        here.control.call("activate", wait=True)
        here.connect().pread(8 * BLOCK, 0)
        here.control.call("withdraw")
        assert here.status()["background"] == "off"
        here.control.call("set", rate="none")
        moves(here, goes_on(source))


@pytest.mark.parametrize("until", ["noted", "read"])
def test_a_source_is_known_by_what_it_is_at_the_last_switch(
    tmp_path: Path, source: Server, until: str
) -> None:
    read, again = tmp_path / "read", tmp_path / "again"
    slow = SLOW_SAMPLES[until].format(read=str(read), goes_on=str(again))
    file = mistaken(tmp_path, f"import time\n{slow}")
    with proxy(tmp_path, source, "mode=standby", "background=off", file=file) as here:
        here.control.call("activate", wait=True)
        wait_for(read.exists, "the source to be looked at")
        here.control.call("withdraw")
        there = source.connect()
        there.pwrite(NEW, 0)
        there.flush()
        here.control.call("activate", wait=True)
        again.touch()
        known = lambda: metadata.read(tmp_path / "store").origin_samples  # noqa: E731
        wait_for(known, "it to be noted")
        assert known() == samples_at(Endpoint(source.uri))


def test_of_a_group_that_can_not_be_taken_over_each_is_given_back(
    tmp_path: Path, source: Server
) -> None:
    with proxy(tmp_path, source, "mode=standby") as here:
        disks = [here.control, Client(tmp_path / "nobody")]
        with pytest.raises(RelocatorError, match="nobody"):
            group.activate(disks)
        assert here.status()["state"] == "standby"
        moves(here, goes_on(source))


def test_an_activation_that_the_store_could_not_note_leaves_nothing_behind(
    tmp_path: Path, source: Server
) -> None:
    file = mistaken(tmp_path, FULL_ONCE)
    with proxy(tmp_path, source, "mode=standby", file=file) as here:
        with pytest.raises(RelocatorError, match="no space"):
            here.control.call("activate", wait=True)
        wait_for(lambda: here.status()["state"] == "standby", "it to be undone")
        assert here.status()["background"] == "off"
        moves(here, goes_on(source))


def test_a_proxy_killed_while_it_is_held_copies_once_it_is_released(
    tmp_path: Path, source: Server
) -> None:
    with proxy(tmp_path, source, "mode=standby") as here:
        here.control.call("activate", hold=True, wait=True)
        here.kill()
    with proxy(tmp_path, source, "mode=standby") as here:
        here.control.call("release")
        here.wait()
        assert here.connect().pread(SIZE_BYTES, 0) == source_bytes(SIZE_BYTES)


@pytest.mark.parametrize("given_back", [True, False])
def test_a_bitmap_is_read_again_after_a_hold(
    tmp_path: Path,
    qemu: StorageDaemon,  # noqa: F811
    guest: Guest,  # noqa: F811
    given_back: bool,
) -> None:
    qemu.record("b0")
    qemu.offer("b0")
    with standby(tmp_path, qemu) as here:
        wait_for(lambda: behind(here) is not None, "a reading, without which nothing is copied")
        guest.write(3)
        here.control.call("activate", hold=True, wait=True)
        wait_for(lambda: present(here) >= TOTAL - 1, "the copy ahead")
        if given_back:
            here.control.call("withdraw")
        guest.write(3, salt=1)  # recorded already: nothing tells that it was written again
        guest.write(5)
        guest.close()
        moves(here, bytes(guest.model))


def test_a_copy_that_was_begun_again_keeps_in_step_though_the_switch_failed(
    tmp_path: Path,
    qemu: StorageDaemon,  # noqa: F811
    guest: Guest,  # noqa: F811
) -> None:
    qemu.record("b0")
    qemu.offer("b0")
    with standby(tmp_path, qemu) as here:
        here.control.call("activate", hold=True, wait=True)
        here.kill()
    qemu.hide()
    with standby(tmp_path, qemu, "retry-timeout=1") as here:
        here.control.call("release")
        wait_for(lambda: here.status()["state"] == "standby", "the switch to be given up")
        qemu.offer("b0")
        wait_for(lambda: here.status()["rounds"] > 1, "a round")
        guest.write(7)
        wait_for(lambda: present(here) >= TOTAL - 1, "the copy ahead")
        guest.close()
        moves(here, bytes(guest.model))


def test_who_gives_back_again_and_again_needs_one_thread(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(source_bytes(SIZE_BYTES))
    ours = (f"disk={tmp_path / 'disk'}", f"store={tmp_path / 'maps'}")
    with plugin(tmp_path, "target", *ours) as source, proxy(tmp_path, source, "mode=standby") as it:
        wait_for(lambda: present(it) == TOTAL, "the copy ahead")
        it.control.call("activate", hold=True, wait=True)
        source.kill()

        def ask() -> int:
            with pytest.raises(RelocatorError, match="the source can't be told"):
                it.control.call("withdraw")
            return len(list(Path(f"/proc/{it.process.pid}/task").iterdir()))

        first = ask()
        assert max(ask() for _ in range(20)) <= first + 2, "threads come and go with connections"
    with plugin(tmp_path, "target", *ours) as source:
        assert source.status()["state"] == "sealed"
        with proxy(tmp_path, source, "mode=standby"):
            wait_for(lambda: source.status()["state"] == "complete", "the source to be told")
