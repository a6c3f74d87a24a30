"""A guest has its disk by iSCSI, at both sites, while it is relocated."""

from dataclasses import replace

import pytest

from tests.support.iscsi import portal
from tests.vm.moves import World, control

pytestmark = pytest.mark.timeout(600)  # the first test of a machine builds the guest's image


def test_a_guest_whose_disk_is_a_lun_moves_with_it(world: World) -> None:
    target = world.target("a")
    with portal(world.directory, target.uri) as at_a:
        guest = world.wake("a", replace(target, uri=at_a.disk))
        proxy = world.sites["b"].proxy(target.uri, "mode=standby", "background=off")
        with portal(world.directory, proxy.uri) as at_b:
            other = world.arriving("b", replace(proxy, uri=at_b.disk))
            world.move(other, proxy)
            control(proxy, "set", background="on")
            control(proxy, "wait")
            world.supervisor.cut_off(target.process)
            other.wait_for_acknowledged(40)
            other.shut_down()
    done = world.prove(proxy, is_down=True)
    assert guest.report.count(b"ack,") >= 20
    assert len(done.acknowledged[0]) >= 60


def test_a_guest_sees_no_error_when_the_proxy_behind_its_lun_is_killed(world: World) -> None:
    target = world.target("a")
    proxy = world.sites["b"].proxy(target.uri)
    with portal(world.directory, proxy.uri) as served:
        guest = world.wake("b", replace(proxy, uri=served.disk))
        proxy = world.sites["b"].revived(proxy)
        guest.wait_for_acknowledged(guest.report.count(b"ack,") + 20)
        control(proxy, "wait")
        guest.shut_down()
    world.prove(proxy, is_down=True)
