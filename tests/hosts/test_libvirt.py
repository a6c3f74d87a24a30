"""A guest moves between two libvirt daemons; its disk follows by our hook and units alone."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.guest import report
from testbed.guest.disks import Contents
from tests.support import libvirt
from tests.support.servers import wait_for
from tests.support.site import Site, join, share_key, site

pytestmark = pytest.mark.timeout(600)  # the first test of a machine builds the guest's image
NAME = "disk"
DISK_XML = """\
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source protocol='nbd'>
        <host name='127.0.0.1' port='{port}'/>
        <reconnect delay='60'/>
      </source>
      <target dev='vd{letter}' bus='virtio'/>
    </disk>
"""
SECOND = Contents(size_bytes=32 << 20, large_bytes=8 << 20, file_system="ext4", system=False)
MIGRATE = ("virsh", "migrate", "--live", "--persistent", "guest", "qemu+tcp://10.1.0.2/system")


@contextmanager
def working(directory: Path, disks: dict[str, Contents]) -> Iterator[tuple[Site, Site]]:
    """Two machines with libvirt, the hook and the units; the guest runs and works at the first."""
    with site(directory, "a") as a, site(directory, "b") as b:
        join(a, "10.1.0.1/24", b, "10.1.0.2/24")
        libvirt.put_guest(a, b)
        share_key(a, b)
        for machine in (a, b):
            machine.run("relocator", "units")
            machine.run("sysctl", "-w", "net.ipv4.ip_local_reserved_ports=49152-49215")
            machine.run("relocator", "libvirt-hook", "--install")
            for port, name in enumerate(disks, 10809):
                source = f"nbd://10.1.0.1:{port}"
                machine.path(f"/etc/relocator/{name}.conf").write_text(
                    f"DISK={image(name)}\nSTORE=/srv/{name}\nLISTEN=0.0.0.0:{port}\n"
                    "OPTIONS=--key /etc/relocator/key\n"
                    f"SOURCE={source}\nPROXY_OPTIONS=--mode standby --activate-on-write yes\n"
                )
            machine.run("systemctl", "daemon-reload")
            libvirt.start_daemon(machine)
        for name, contents in disks.items():
            a.path(f"/srv/{name}").mkdir()
            libvirt.make_disk(a.path(image(name)), contents)
            a.run("systemctl", "start", f"relocator-target@{name}")
        described = zip("abc", range(10809, 10809 + len(disks)), strict=False)
        xml = "".join(DISK_XML.format(letter=letter, port=port) for letter, port in described)
        for machine in (a, b):
            machine.path("/srv/guest.xml").write_text(libvirt.domain("guest", xml))
        a.run("virsh", "define", "/srv/guest.xml")
        a.run("virsh", "start", "guest")
        guest = libvirt.guest_at(a)
        guest.wait_until_said("ready")
        guest.tell("write 0 40 1", "read 0 25 2")
        guest.wait_for_acknowledged(20)
        yield a, b


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    """The guest has one disk."""
    with working(tmp_path, {NAME: Contents()}) as machines:
        yield machines


def image(name: str) -> str:
    """A disk at either site."""
    return f"/srv/{name}/disk.img"


def control(name: str) -> str:
    """Its server's control socket."""
    return f"/run/relocator/{name}.sock"


def state(machine: Site, name: str = NAME) -> str:
    found = json.loads(machine.run("relocator", "status", control(name), "--json"))
    return str(found["state"])


def prove(a: Site, b: Site, *names: str) -> report.Report:
    """The guest shuts down at b; everything that it did at both is as it must be."""
    libvirt.shut_down(b, "guest")
    for name in names:
        b.run("systemctl", "stop", f"relocator-proxy@{name}")
    guests = [libvirt.guest_at(machine) for machine in (a, b)]
    texts, consoles = [one.report for one in guests], [one.console for one in guests]
    assert report.problems(texts, consoles, [b.path(image(name)) for name in names]) == []
    return report.parse(texts)


def test_a_guest_migrates_and_its_disk_follows(sites: tuple[Site, Site]) -> None:
    a, b = sites
    a.run(*MIGRATE)
    other = libvirt.guest_at(b)
    other.wait_for_acknowledged(20)
    assert state(a) == "sealed"
    refused = a.ask("virsh", "start", "guest")
    assert (refused.returncode, "it has moved on" in refused.stdout) == (1, True), refused.stdout
    b.run("relocator", "wait", control(NAME))
    b.run("relocator", "verify", control(NAME))
    a.run("systemctl", "stop", f"relocator-target@{NAME}")
    other.wait_for_acknowledged(40)
    done = prove(a, b, NAME)
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
    other_hook = b.path("/etc/libvirt/hooks/qemu.d/zz")  # after ours, libvirt fails
    other_hook.write_text('#!/bin/sh\n[ "$2" != migrate ]\n')
    other_hook.chmod(0o755)
    assert a.ask(*MIGRATE).returncode == 1
    other_hook.unlink()
    mark = b.path("/run/relocator/arriving-guest")
    mark.write_text(str(float(mark.read_text()) - 60))
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
    b.run("relocator", "wait", control(NAME))
    prove(a, b, NAME)


def test_a_guest_of_two_disks_moves_with_both(tmp_path: Path) -> None:
    names = (NAME, "data")
    with working(tmp_path, dict(zip(names, (Contents(), SECOND), strict=True))) as (a, b):
        libvirt.guest_at(a).tell("read 1 25 3")  # the second is not written yet
        a.run(*MIGRATE)
        other = libvirt.guest_at(b)
        other.wait_for_acknowledged(20)
        b.run("relocator", "activate", *map(control, names))
        said = b.run("relocator", "activate", *map(control, names))
        assert said.count("is active already") == 2
        assert [state(a, name) for name in names] == ["sealed", "sealed"]
        other.tell("write 1 40 4")
        for name in names:
            b.run("relocator", "wait", control(name))
            b.run("relocator", "verify", control(name))
            a.run("systemctl", "stop", f"relocator-target@{name}")
        other.wait_for_acknowledged(60)
        done = prove(a, b, *names)
        assert min(len(done.acknowledged[number]) for number in range(2)) >= 20
