"""What something else has written into an image is not taken for what the maps say of it.

As where a VM is booted from the file itself while no server runs.
"""

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from relocator.errors import RelocatorError
from tests.nbd.test_handover import all_present
from tests.support.model import source_bytes
from tests.support.servers import plugin, refused, wait_for
from tests.support.sites import BLOCK, SIZE_BYTES

ELSE = b"x" * BLOCK
NEW = b"n" * BLOCK
LATER_NS = 10**9


def write_outside(image: Path, at: int, data: bytes = ELSE) -> None:
    """Write to an image, later than anybody before."""
    was_ns = image.stat().st_mtime_ns
    with image.open("r+b") as file:
        file.seek(at)
        file.write(data)
    os.utime(image, ns=(was_ns + LATER_NS, was_ns + LATER_NS))


@pytest.mark.parametrize("ended", ["closed", "flushed"])
def test_what_was_written_while_the_source_was_down_is_copied(sites: Any, ended: str) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with ExitStack() as running:
        first = running.enter_context(a.target())
        second = running.enter_context(b.proxy(first, "mode=standby", "refresh=off"))
        wait_for(lambda: all_present(second), "the copy ahead")
        if ended == "closed":
            second.kill()  # nbdkit ends once its clients have gone
            first.end()
        else:  # as the units do
            first.control.call("flush", last=True)
            first.kill()
        write_outside(a.image, 5 * BLOCK)
        model[5 * BLOCK : 6 * BLOCK] = ELSE
        again = running.enter_context(a.target())
        assert any("written by something else" in note for note in again.status()["notes"])
        if ended == "closed":
            second = running.enter_context(b.proxy(again, "mode=standby", "refresh=off"))
        second.control.call("activate", wait=True)
        assert second.connect().pread(SIZE_BYTES, 0) == model


@pytest.mark.parametrize("then", ["a round", "a seal that is undone"])
def test_what_is_written_after_the_last_flush_is_found_whatever_came_in_between(
    sites: Any, then: str
) -> None:
    """As where a round of a copy comes before the server is killed."""
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    model[:BLOCK] = NEW
    with ExitStack() as running:
        first = running.enter_context(a.target())
        second = running.enter_context(b.proxy(first, "mode=standby", "refresh=off"))
        wait_for(lambda: all_present(second), "the copy ahead")
        first.connect().pwrite(NEW, 0)
        first.control.call("flush", last=True)
        if then == "a round":
            second.control.call("refresh")
            wait_for(lambda: all_present(second), "the round")
        else:
            first.control.call("seal")
            first.control.call("unseal")
        first.kill()
        write_outside(a.image, 5 * BLOCK)
        model[5 * BLOCK : 6 * BLOCK] = ELSE
        again = running.enter_context(a.target())
        assert any("written by something else" in note for note in again.status()["notes"])
        second.control.call("activate", wait=True)
        assert second.connect().pread(SIZE_BYTES, 0) == model


def test_what_was_not_written_is_not_copied_again(sites: Any) -> None:
    a, b, _ = sites
    with ExitStack() as running:
        first = running.enter_context(a.target())
        second = running.enter_context(b.proxy(first, "mode=standby", "refresh=off"))
        wait_for(lambda: all_present(second), "the copy ahead")
        for last in (True, False, True):
            first.connect().pwrite(NEW, 0)
            first.control.call("flush", last=last)
            first.kill()
            first = running.enter_context(a.target())
            assert first.status()["notes"] == []
        second.control.call("activate", wait=True)
        assert second.status()["dropped_blocks"] == 1


def test_after_the_last_flush_no_write_passes(sites: Any) -> None:
    a, _, _ = sites
    with a.target() as server:
        handle = server.connect()
        handle.pwrite(NEW, 0)
        server.control.call("flush", last=True)
        written = handle.aio_pwrite(ELSE, 0)
        assert handle.poll(200) in (0, 1)
        assert not handle.aio_command_completed(written)
        server.kill()
    assert a.image.read_bytes()[:BLOCK] == NEW


@pytest.mark.parametrize("sealed", ["before", "after"])
def test_after_the_last_flush_no_write_passes_at_a_disk_that_was_unsealed(
    sites: Any, sealed: str
) -> None:
    a, _, _ = sites
    with a.target() as server:
        handle = server.connect()
        handle.pwrite(NEW, 0)
        if sealed == "before":
            server.control.call("seal")
        server.control.call("flush", last=True)
        server.control.call("seal")
        server.control.call("unseal")
        written = handle.aio_pwrite(ELSE, 0)
        assert handle.poll(200) in (0, 1)
        assert not handle.aio_command_completed(written)
        server.kill()
    with a.target() as again:
        assert again.status()["notes"] == []
        handle = again.connect()
        assert handle.pread(BLOCK, 0) == NEW
        handle.pwrite(ELSE, 0)
        assert handle.pread(BLOCK, 0) == ELSE


def test_a_sealed_disk_that_was_written_is_not_served_until_it_is_said_to_be_the_same(
    sites: Any,
) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as first, b.proxy(first, "background=off", "readahead=0") as second:
        first.kill()
        write_outside(a.image, 5 * BLOCK)
        said = refused(f"disk={a.image}", f"store={a.maps}")
        assert "was written by something else since it was sealed" in said
        write_outside(a.image, 5 * BLOCK, bytes(model[5 * BLOCK : 6 * BLOCK]))
        command = said[said.index("touch -d") :].split()[:4]
        assert command[-1].rstrip(".") == str(a.image)
        subprocess.run([*command[:-1], str(a.image)], check=True)
        with a.target():
            assert second.connect().pread(SIZE_BYTES, 0) == model


@pytest.mark.parametrize("mode", ["active", "standby"])
def test_a_disk_that_returns_to_an_image_that_was_written_is_copied_whole(
    sites: Any, mode: str
) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with ExitStack() as running:
        first = running.enter_context(a.target())
        second = running.enter_context(b.proxy(first))
        second.wait()
        second.connect().pwrite(NEW, 0)
        model[:BLOCK] = NEW
        first.kill()
        write_outside(a.image, 5 * BLOCK)
        wanted = (f"disk={a.image}", f"store={a.maps}", f"source={second.uri}", f"mode={mode}")
        back = running.enter_context(plugin(a.directory, "proxy", *wanted))
        assert any("all of it is copied" in note for note in back.status()["notes"])
        if mode == "standby":
            back.control.call("activate", wait=True)
        back.wait()
        assert back.connect().pread(SIZE_BYTES, 0) == model
        back.kill()
        assert a.image.read_bytes() == model


def test_a_copy_ahead_that_was_written_is_dropped(sites: Any) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as first:
        with b.proxy(first, "mode=standby") as second:
            wait_for(lambda: all_present(second), "the copy ahead")
            second.end()
        write_outside(b.copy, 5 * BLOCK)
        with b.proxy(first, "mode=standby") as second:
            assert any("copied ahead was dropped" in note for note in second.status()["notes"])
            second.control.call("activate", wait=True)
            assert second.connect().pread(SIZE_BYTES, 0) == model


def test_a_copy_that_is_not_complete_and_was_written_is_refused(sites: Any) -> None:
    a, b, _ = sites
    with a.target() as first:
        with b.proxy(first, "background=off") as second:
            second.connect().pwrite(NEW, 0)
            second.end()
        write_outside(b.copy, 5 * BLOCK)
        said = refused(f"store={b.directory / 'store'}", f"source={first.uri}")
        assert "with blocks still absent" in said


def test_a_return_takes_what_was_written_while_the_other_site_was_down(sites: Any) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as first, b.proxy(first) as second:
        second.wait()
        second.end()
    write_outside(b.copy, 5 * BLOCK)
    model[5 * BLOCK : 6 * BLOCK] = ELSE
    with plugin(b.directory, "proxy", f"store={b.directory / 'store'}") as second:
        wanted = (f"disk={a.image}", f"store={a.maps}", f"source={second.uri}")
        with plugin(a.directory, "proxy", *wanted) as first:
            first.wait()
            assert first.connect().pread(SIZE_BYTES, 0) == model


def test_room_is_not_made_in_a_sealed_image(sites: Any) -> None:
    a, _, _ = sites
    with a.target() as server:
        server.control.call("seal")
        with pytest.raises(RelocatorError, match="'reserve' is refused in state 'sealed'"):
            server.control.call("reserve")
        server.kill()
        with a.target() as again:
            assert again.status()["state"] == "sealed"


def test_room_is_not_made_after_the_last_flush(sites: Any) -> None:
    a, _, _ = sites
    with a.target() as server:
        server.control.call("reserve")
        server.control.call("flush", last=True)
        with pytest.raises(RelocatorError, match="'reserve' is refused: flushed for the last time"):
            server.control.call("reserve")
        server.kill()
        with a.target() as again:
            assert again.status()["notes"] == []
