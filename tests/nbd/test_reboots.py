"""A site is started anew: what its disk still knows of the others, and they of it.

In order: the last thing a server hears is `flush --last`, then it is killed, as by the units.
"""

from contextlib import ExitStack
from typing import Any

import nbd
import pytest

from relocator.errors import RelocatorError
from tests.nbd.test_handover import all_present
from tests.support.model import source_bytes
from tests.support.servers import Server, plugin, wait_for
from tests.support.sites import BLOCK, SIZE_BYTES, reboot, scribble


def end_in_order(server: Server) -> None:
    """As the units end it."""
    server.control.call("flush", last=True)
    server.kill()


def brought_back(a: Any, b: Any, model: bytes) -> dict[str, Any]:
    """The status once the disk is at `a` again, and is what it should be."""
    home = (f"disk={a.image}", f"store={a.maps}", "mode=standby")
    with plugin(b.directory, "proxy", f"store={b.directory / 'store'}") as away:
        with plugin(a.directory, "home", *home, f"source={away.uri}") as proxy:
            proxy.control.call("activate", wait=True)
            status = proxy.wait()
            assert proxy.connect().pread(SIZE_BYTES, 0) == model
            return status


@pytest.mark.parametrize("also", ["withdrawn before", "withdrawn after"])
def test_a_disk_that_is_given_back_after_a_power_failure_is_sealed_again_the_next_time(
    sites: Any, also: str
) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as first:
        with b.proxy(first, "mode=standby", "background=off") as proxy:
            proxy.control.call("activate", wait=True)
            proxy.connect().pread(8 * BLOCK, 0)
            if also == "withdrawn before":
                first.kill()  # who can't be told now
                with pytest.raises(RelocatorError, match="withdrawn here, but the source can't be"):
                    proxy.control.call("withdraw")
            proxy.kill()
        reboot(b.directory / "store")
        with ExitStack() as running:
            is_lost = also == "withdrawn before"
            target = running.enter_context(a.target()) if is_lost else first
            proxy = running.enter_context(b.proxy(target, "mode=standby", "background=off"))
            if also == "withdrawn after":
                assert any("power failed" in note for note in proxy.status()["notes"])
                proxy.control.call("withdraw")
            wait_for(lambda: target.status()["state"] == "complete", "the source to be told")
            assert not any("power failed" in note for note in proxy.status()["notes"])
            scribble(target.connect(), model, 1)
            proxy.control.call("activate", wait=True)
            with pytest.raises(nbd.Error, match="EPERM"):
                target.connect().pwrite(b"too late", 0)
            assert proxy.connect().pread(SIZE_BYTES, 0) == model


def test_after_a_power_failure_the_way_back_copies_all_of_it(sites: Any) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target:
        with b.proxy(target) as proxy:
            proxy.wait()
            scribble(proxy.connect(), model, 2, count=10)
            proxy.connect().flush()
            proxy.kill()
        reboot(b.directory / "store")
        # What was written and not flushed may be there all the same.
        model[9 * BLOCK : 10 * BLOCK] = b"u" * BLOCK
        b.copy.write_bytes(model)
        with b.proxy(target) as proxy:
            assert proxy.status()["source_offers"] == "everything"
            with pytest.raises(RelocatorError, match="nothing to compare: power failed"):
                proxy.control.call("verify")
    status = brought_back(a, b, model)
    moved = ("background_bytes", "on_demand_bytes", "hole_bytes")
    assert sum(status[name] for name in moved) >= SIZE_BYTES


def test_a_site_that_is_started_anew_in_order_knows_what_was_written(sites: Any) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target:
        with b.proxy(target) as proxy:
            proxy.wait()
            scribble(proxy.connect(), model, 3, count=10)
            written = proxy.status()["dirty_blocks"]
            end_in_order(proxy)
        reboot(b.directory / "store")
        with b.proxy(target) as proxy:
            proof = proxy.control.call("verify")
            assert proof["verified_blocks"] == SIZE_BYTES // BLOCK - written
    status = brought_back(a, b, model)
    assert status["background_bytes"] + status["on_demand_bytes"] <= written * BLOCK


@pytest.mark.parametrize("ends", ["in order", "by a power failure"])
def test_a_source_that_is_started_anew_in_order_leaves_the_copy_ahead_in_place(
    sites: Any, ends: str
) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with ExitStack() as running:
        target = running.enter_context(a.target())
        proxy = running.enter_context(b.proxy(target, "mode=standby", "refresh=off"))
        wait_for(lambda: all_present(proxy), "the copy ahead")
        scribble(target.connect(), model, 4, count=10)
        written = target.status()["dirty_blocks"]
        end_in_order(target) if ends == "in order" else target.kill()
        reboot(a.maps)
        target = running.enter_context(a.target())
        done = proxy.control.call("activate", wait=True)
        all_blocks = SIZE_BYTES // BLOCK
        assert done["dropped_blocks"] == (written if ends == "in order" else all_blocks)
        assert proxy.connect().pread(SIZE_BYTES, 0) == model


def test_a_server_that_is_started_as_ever_does_not_take_back_what_has_moved_back(
    sites: Any,
) -> None:
    a, b, _ = sites
    model = source_bytes(SIZE_BYTES)
    with a.target() as target, b.proxy(target) as proxy:
        proxy.wait()
    home = (f"disk={a.image}", f"store={a.maps}")
    with plugin(b.directory, "proxy", f"store={b.directory / 'store'}") as away:
        with plugin(a.directory, "target", *home, f"source={away.uri}", "mode=standby") as proxy:
            proxy.control.call("activate", wait=True)
            proxy.wait()
            away.kill()
            with b.proxy(proxy) as again:  # by a service manager: the command as it was
                assert again.status()["state"] == "sealed"
                assert any("has moved back" in note for note in again.status()["notes"])
                scribble(proxy.connect(), model, 5)  # the guest's writes pass
                with pytest.raises(nbd.Error, match="EPERM"):
                    again.connect().pwrite(b"there is another", 0)
            with b.proxy(proxy, "mode=standby") as again:
                again.control.call("activate", wait=True)
                assert again.connect().pread(SIZE_BYTES, 0) == model
