"""docs/hypervisors.md does what it says, on two machines with a real guest."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.guest import report
from tests.docs.page import Page
from tests.support import libvirt
from tests.support.site import Site, join, share_key, site

pytestmark = pytest.mark.timeout(900)  # the first test of a machine builds the guest's image
PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "hypervisors.md"
RUN_WITH_LIBVIRT = ("The key", "Services", "libvirt", "The move", "Back")
RUN_WITH_ISCSI = ("A disk for initiators", "A LUN as the source")
Sites = dict[str, Site]


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with site(tmp_path, "source") as a, site(tmp_path, "destination") as b:
        join(a, "10.1.0.1/24", b, "10.1.0.2/24")
        for machine in (a, b):  # with few others, a guest's port is soon a connection's
            machine.run("sysctl", "-w", "net.ipv4.ip_local_port_range=49152 49279")
        a.path("/srv/vm1").mkdir()
        libvirt.make_disk(a.path("/srv/vm1/disk.img"))
        yield {"source": a, "destination": b}


def test_a_guest_of_libvirt_s_moves_and_comes_back(sites: Sites) -> None:
    page = Page(PAGE)
    source, destination = sites.values()
    libvirt.put_guest(source, destination)
    for machine in sites.values():
        libvirt.start_daemon(machine)
    page.run("The key", sites)
    share_key(source, destination)
    page.run("Services", sites)
    source.path("/srv/vm1.xml").write_text(libvirt.domain("vm1", page.part("libvirt", "xml")))
    page.run("libvirt", sites)
    source.run("virsh", "define", "/srv/vm1.xml")
    source.run("virsh", "start", "vm1")
    guest = libvirt.guest_at(source)
    guest.wait_until_said("ready")
    guest.tell("write 0 40 1", "read 0 25 2")
    guest.wait_for_acknowledged(20)
    page.run("The move", sites)
    starts_with_its_host(destination, source)
    said = [(guest.report, guest.console)]
    other = libvirt.guest_at(destination)
    other.wait_for_acknowledged(20)
    page.run("Back", sites)
    starts_with_its_host(source, destination)
    said.append((other.report, other.console))
    guest.wait_for_acknowledged(20)
    libvirt.shut_down(source, "vm1")
    said.append((guest.report, guest.console))
    texts, consoles = zip(*said, strict=True)
    assert report.problems(texts, consoles, [source.path("/srv/vm1/disk.img")]) == []


def starts_with_its_host(here: Site, elsewhere: Site) -> None:
    """The server of the guest's disk does, and no other."""

    def enabled(machine: Site) -> list[str]:
        units = ("relocator-target@vm1", "relocator-proxy@vm1")
        said = [machine.ask("systemctl", "is-enabled", unit).stdout.strip() for unit in units]
        return [unit for unit, word in zip(units, said, strict=True) if word == "enabled"]

    (unit,) = enabled(here)
    assert here.run("systemctl", "is-active", unit).strip() == "active"
    assert enabled(elsewhere) == []


def test_a_disk_is_served_by_iscsi_and_a_lun_is_copied(sites: Sites) -> None:
    page = Page(PAGE)
    source, destination = sites.values()
    page.run("The key", sites)
    share_key(*sites.values())
    page.run("Services", sites)
    destination.run("relocator", "activate", "/run/relocator/vm1.sock")
    for section in RUN_WITH_ISCSI:
        page.run(section, sites)
    original = source.path("/srv/vm1/disk.img").read_bytes()
    assert source.path("/srv/vm1-copy/disk.img").read_bytes() == original


@pytest.mark.lab
def test_what_needs_the_kernel_s_nbd_does_what_it_says_in_the_lab(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "testbed.lab", "run", "--where", "vm", "--clock", "real"]
    command += ["--out", str(tmp_path), "--file", str(PAGE), "--", "tests.docs.inside"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_every_command_of_the_page_belongs_to_a_site() -> None:
    sections = {block.section for block in Page(PAGE).blocks}
    assert sections == {*RUN_WITH_LIBVIRT, *RUN_WITH_ISCSI}
    for lab in (False, True):
        for block in Page(PAGE, lab=lab).blocks:
            assert block.words.get("at") in ("source", "destination", "both"), block
    prose = re.sub(r"^```\w+ at=[^\n]*\n.*?^```$", "", PAGE.read_text(), flags=re.M | re.S)
    assert re.findall(r"^```.*|^    \S.*", prose, re.MULTILINE) == []
