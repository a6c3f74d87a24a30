"""A real guest moves with its disk: QEMU, nbdkit and ext3 as they are, over loopback.

What must hold is the same each time: every record that the guest had acknowledged is in the last
image, it saw no error, and the file system is clean. The guest is woken from a state kept at its
first boot.
"""

from pathlib import Path

import pytest

from relocator.source import key
from relocator.source.endpoint import Endpoint
from relocator.source.handles import connected
from testbed.guest.prepared import Prepared
from testbed.guest.site import Server
from testbed.hosts import services
from tests.vm.moves import FAST, PAUSE, World, control, fetched_bytes, wait_for_state

pytestmark = pytest.mark.timeout(600)  # the first test of a machine builds the guest's image
BLOCK_BYTES = 4096


def test_a_guest_moves_with_its_disk_and_the_source_is_switched_off(world: World) -> None:
    target = world.target("a")
    guest = world.wake("a", target)
    proxy = world.sites["b"].proxy(target.uri, "mode=standby", "background=off")
    other = world.arriving("b", proxy)
    # QEMU has read the first sector by now, while the guest still writes: nothing may be kept.
    assert control(proxy, "status")["present_blocks"] == 0
    world.move(other, proxy)
    control(proxy, "set", background="on")
    control(proxy, "wait")
    world.supervisor.cut_off(target.process)
    other.wait_for_acknowledged(40)
    done = world.prove(proxy)
    assert guest.report.count(b"ack,") >= 20
    assert len(done.acknowledged[0]) >= 60
    assert len(done.reads) >= 20


def test_what_was_copied_ahead_and_written_since_is_fetched_again(world: World) -> None:
    target = world.target("a")
    guest = world.wake("a", target)
    proxy = world.sites["b"].proxy(target.uri, "mode=standby")
    other = world.arriving("b", proxy)
    seeded = guest.report.count(b"ack,")
    guest.wait_for_acknowledged(seeded + 40)
    world.move(other, proxy)
    control(proxy, "wait")
    world.supervisor.cut_off(target.process)
    world.prove(proxy)


def test_the_first_write_activates_where_nobody_scripts_the_migration(world: World) -> None:
    target = world.target("a")
    guest = world.wake("a", target)
    keys = ("mode=standby", "activate-on-write=yes")
    proxy = world.sites["b"].proxy(target.uri, *keys)
    other = world.arriving("b", proxy)
    assert other.incoming is not None
    guest.migrate(other.incoming, **FAST)
    guest.wait_migrated()
    world.arrived(other)
    assert control(proxy, "status")["state"] in ("active", "complete")
    assert control(target, "status")["state"] == "sealed"
    control(proxy, "wait")
    world.supervisor.cut_off(target.process)
    world.prove(proxy)


def test_a_guest_goes_there_and_back_and_only_what_it_dirtied_returns(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    a = world.sites["a"]
    maps = a.directory / "maps"
    target = world.target("a", store=maps)
    world.wake("a", target)
    proxy = world.sites["b"].proxy(target.uri, "mode=standby")
    world.move(world.arriving("b", proxy), proxy)
    control(proxy, "wait")
    world.supervisor.stop(target.process)
    keys = (f"disk={target.image}", "mode=standby", "background=off")
    back = a.proxy(proxy.uri, *keys, store=maps)
    world.move(world.arriving("a", back), back)
    diverged_bytes = _diverged_blocks(proxy) * BLOCK_BYTES
    control(back, "set", background="on")
    control(back, "wait")
    returned_bytes = fetched_bytes(control(back, "status"))
    size_bytes = control(back, "status")["size_bytes"]
    with capsys.disabled():
        print(f"\nback: {returned_bytes} bytes, {diverged_bytes} diverged, disk {size_bytes}")
    assert 0 < returned_bytes <= diverged_bytes < size_bytes / 8
    world.supervisor.cut_off(proxy.process)
    world.prove(back)


def _diverged_blocks(server: Server) -> int:
    """How many blocks were written at this site since it took the disk over."""
    endpoint = Endpoint(server.uri, key=key.read("key", services.key_file()))
    with connected(endpoint.with_export("diverged")) as handle:
        content = handle.pread(handle.get_size(), 0)
    return sum(byte.bit_count() for byte in content)


def test_a_guest_goes_on_to_a_third_site_before_all_of_its_disk_has_come(world: World) -> None:
    target = world.target("a")
    world.wake("a", target)
    first = world.sites["b"].proxy(target.uri, "mode=standby", "background=off")
    world.move(world.arriving("b", first), first)
    second = world.sites["c"].proxy(first.uri, "mode=standby", "background=off")
    world.move(world.arriving("c", second), second)
    assert control(first, "status")["state"] == "relaying"
    control(second, "set", background="on")
    control(second, "wait")
    world.supervisor.cut_off(target.process)
    world.supervisor.cut_off(first.process)
    world.way[-1].wait_for_acknowledged(40)
    world.prove(second)


@pytest.mark.parametrize("moment", ["while memory is copied", "at the pause"])
def test_a_cancelled_migration_leaves_the_guest_at_home_and_may_be_tried_again(
    world: World, moment: str
) -> None:
    target = world.target("a")
    guest = world.wake("a", target)
    proxy = world.sites["b"].proxy(target.uri, "mode=standby")
    other = world.arriving("b", proxy)
    assert other.incoming is not None
    slow = {"max_bandwidth": 4 << 20}
    guest.migrate(other.incoming, PAUSE, **(FAST if moment == "at the pause" else slow))
    guest.wait_migrated("pre-switchover" if moment == "at the pause" else "active")
    guest.monitor.call("migrate_cancel")
    guest.wait_migrated("cancelled")
    guest.wait_for_acknowledged(guest.report.count(b"ack,") + 20)
    assert control(proxy, "status")["state"] == "standby"
    assert control(target, "status")["state"] == "complete"
    world.supervisor.wait(other.process, 30)  # its guest did not come
    world.move(world.arriving("b", proxy), proxy)
    wait_for_state(proxy, ["complete"])
    world.supervisor.cut_off(target.process)
    world.prove(proxy)


def test_a_guest_of_two_disks_moves_with_both(
    origin_of_two_disks: Prepared, tmp_path: Path
) -> None:
    with World(tmp_path, origin_of_two_disks) as world:
        targets = [world.target("a", number) for number in range(2)]
        world.wake("a", *targets)
        proxies = [world.sites["b"].proxy(target.uri, "mode=standby") for target in targets]
        world.move(world.arriving("b", *proxies), *proxies)
        for target, proxy in zip(targets, proxies, strict=True):
            control(proxy, "wait")
            world.supervisor.cut_off(target.process)
        done = world.prove(*proxies)
        assert min(len(done.acknowledged[number]) for number in range(2)) >= 10


def test_a_guest_sees_a_pause_and_no_error_when_its_proxy_is_killed(world: World) -> None:
    target = world.target("a")
    world.wake("a", target)
    proxy = world.sites["b"].proxy(target.uri, "mode=standby", "background=off")
    other = world.arriving("b", proxy)
    world.move(other, proxy)
    proxy = world.sites["b"].revived(proxy)
    other.wait_for_acknowledged(other.report.count(b"ack,") + 20)
    control(proxy, "set", background="on")
    control(proxy, "wait")
    world.supervisor.cut_off(target.process)
    world.prove(proxy)


def test_fio_verifies_in_the_guest_what_it_wrote_at_both_sites(
    origin_with_fio: Prepared, tmp_path: Path
) -> None:
    fio = "fio --name=moved --filename=/fio --size=2M --bs=4k --rw=randwrite --direct=1 --fsync=16"
    fio += " --rate_iops=100 --verify=crc32c --verify_fatal=1 --output=/dev/null"
    with World(tmp_path, origin_with_fio) as world:
        target = world.target("a")
        world.wake("a", target).tell(f"run {fio}")
        proxy = world.sites["b"].proxy(target.uri, "mode=standby")
        world.move(world.arriving("b", proxy), proxy)
        control(proxy, "wait")
        world.supervisor.cut_off(target.process)
        world.way[-1].wait_until_said(f"ran,0,{fio}")
        world.prove(proxy)
