"""A guest moves between two libvirt daemons; its disk follows by our hook and units alone."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.guest import report
from tests.support import libvirt
from tests.support.servers import wait_for
from tests.support.site import Site, join, site

pytestmark = pytest.mark.timeout(600)  # the first test of a machine builds the guest's image
NAME = "disk"
DISK = "/srv/disk/disk.img"
CONTROL = f"/run/relocator/{NAME}.sock"
DISK_XML = """\
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source protocol='nbd'>
        <host name='127.0.0.1' port='10809'/>
        <reconnect delay='60'/>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>"""
MIGRATE = ("virsh", "migrate", "--live", "--persistent", "guest", "qemu+tcp://10.1.0.2/system")


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    """Two machines with libvirt, the hook and the units; the guest runs and works at the first."""
    with site(tmp_path, "a") as a, site(tmp_path, "b") as b:
        join(a, "10.1.0.1/24", b, "10.1.0.2/24")
        libvirt.put_guest(a, b)
        for machine in (a, b):
            machine.run("relocator", "units")
            machine.run("relocator", "libvirt-hook", "--install")
            machine.path(f"/etc/relocator/{NAME}.conf").write_text(
                f"DISK={DISK}\nSTORE=/srv/disk\nLISTEN=0.0.0.0:10809\nSOURCE=nbd://10.1.0.1\n"
                "PROXY_OPTIONS=--mode standby --activate-on-write yes\n"
            )
            machine.run("systemctl", "daemon-reload")
            libvirt.start_daemon(machine)
        a.path("/srv/disk").mkdir()
        libvirt.make_disk(a.path(DISK))
        a.run("systemctl", "start", f"relocator-target@{NAME}")
        for machine in (a, b):
            machine.path("/srv/guest.xml").write_text(libvirt.domain("guest", DISK_XML))
        a.run("virsh", "define", "/srv/guest.xml")
        a.run("virsh", "start", "guest")
        guest = libvirt.guest_at(a)
        guest.wait_until_said("ready")
        guest.tell("write 0 40 1", "read 0 25 2")
        guest.wait_for_acknowledged(20)
        yield a, b


def state(machine: Site) -> str:
    found = json.loads(machine.run("relocator", "status", CONTROL, "--json"))
    return str(found["state"])


def prove(a: Site, b: Site) -> report.Report:
    """The guest shuts down at b; everything that it did at both is as it must be."""
    libvirt.shut_down(b, "guest")
    b.run("systemctl", "stop", f"relocator-proxy@{NAME}")
    guests = [libvirt.guest_at(machine) for machine in (a, b)]
    texts, consoles = [one.report for one in guests], [one.console for one in guests]
    assert report.problems(texts, consoles, [b.path(DISK)]) == []
    return report.parse(texts)


def test_a_guest_migrates_and_its_disk_follows(sites: tuple[Site, Site]) -> None:
    a, b = sites
    a.run(*MIGRATE)
    other = libvirt.guest_at(b)
    other.wait_for_acknowledged(20)
    assert state(a) == "sealed"
    refused = a.ask("virsh", "start", "guest")
    assert (refused.returncode, "it has moved on" in refused.stdout) == (1, True), refused.stdout
    b.run("relocator", "wait", CONTROL)
    b.run("relocator", "verify", CONTROL)
    a.run("systemctl", "stop", f"relocator-target@{NAME}")
    other.wait_for_acknowledged(40)
    done = prove(a, b)
    assert len(done.acknowledged[0]) >= 60


def test_a_guest_that_can_not_go_or_is_called_back_works_on_and_goes_later(
    sites: tuple[Site, Site],
) -> None:
    a, b = sites
    guest = libvirt.guest_at(a)
    configuration = b.path(f"/etc/relocator/{NAME}.conf")
    right = configuration.read_text()
    configuration.write_text(right.replace("10.1.0.1", "10.1.0.3"))
    refused = a.ask(*MIGRATE)
    assert (refused.returncode, f"relocator-proxy@{NAME}" in refused.stdout) == (1, True)
    configuration.write_text(right)

    b.run("systemctl", "start", f"relocator-proxy@{NAME}")
    b.run("virsh", "define", "/srv/guest.xml")
    refused = b.ask("virsh", "start", "guest")
    assert (refused.returncode, "is in standby here" in refused.stdout) == (1, True), refused.stdout
    b.run("virsh", "undefine", "guest")

    slow = threading.Thread(target=a.ask, args=((*MIGRATE, "--bandwidth", "1")))
    slow.start()
    wait_for(lambda: "guest" in b.ask("virsh", "list", "--all").stdout, "QEMU at b")
    wait_for(lambda: a.ask("virsh", "domjobabort", "guest").returncode == 0, "the cancellation")
    slow.join()
    assert b.run("virsh", "list", "--all", "--name").split() == []
    guest.wait_for_acknowledged(guest.report.count(b"ack,") + 20)
    assert (state(a), state(b)) == ("complete", "standby")

    a.run(*MIGRATE)
    libvirt.guest_at(b).wait_for_acknowledged(20)
    b.run("relocator", "wait", CONTROL)
    prove(a, b)
