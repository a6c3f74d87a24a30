"""A part of a move can't be asked, and answers again later: no site is given what another has.

The disks are real; each QEMU is a monitor that says what the test wants.
"""

import nbd
import pytest

from tests.migrate.way import TwoDisks, Way
from tests.support import command
from tests.support.servers import Server, wait_for

_BLOCK = 4096


def write(server: Server, text: bytes) -> None:
    """What the guest writes at a site, and flushes."""
    guest = server.connect()
    guest.pwrite(text.ljust(_BLOCK, b"."), 0)
    guest.flush()


def goes_back(way: Way, proxy: Server) -> None:
    """The destination is out of reach, and `proxy`, as the guest arrives; it goes on at the source.

    Then all answers again, and the guest is shut down at the source.
    """
    way.source.before["migrate-continue"] = way.arrived
    process = way.sending(env=command.impatient(way.directory))
    hidden = proxy.control_path.with_name("hidden")
    way.source.stand_still()
    wait_for(lambda: way.destination.status == "running", "arrival")
    wait_for(lambda: proxy.status()["seal_confirmed"], "the seal")
    way.destination.lose()
    proxy.control_path.rename(hidden)
    said, _ = process.communicate(timeout=90)
    assert way.source.status == "running", said
    write(way.target, b"at the source, an hour later")
    hidden.rename(proxy.control_path)
    way.destination.mute = False
    way.source.close()


def settled_as_lost(way: Way) -> None:
    """The source's QEMU is known to have ended: the disks are given back, and nothing else."""
    done = way.run("--settle")
    assert done.returncode == 1
    assert "It must not go on: end it" in done.stderr
    done = way.run("--settle", "--lost", "source")
    assert done.returncode == 1, done.stdout
    assert "its disks are at the source" in done.stderr


def refuses_writes(proxy: Server) -> None:
    with pytest.raises(nbd.Error):
        write(proxy, b"of a guest that was never stopped")


def test_a_guest_left_at_the_destination_has_no_disk_that_its_source_has_written(way: Way) -> None:
    goes_back(way, way.proxy)
    assert way.proxy.status()["held"]
    settled_as_lost(way)
    assert way.disk == ("complete", "standby")
    refuses_writes(way.proxy)


def test_nor_where_one_of_two_disks_is_held_still(two: TwoDisks) -> None:
    goes_back(two, two.proxy2)
    assert (two.disk, two.disk2) == (("complete", "standby"), ("complete", "activating"))
    settled_as_lost(two)
    assert (two.disk, two.disk2) == (("complete", "standby"), ("complete", "standby"))
    for proxy in (two.proxy, two.proxy2):
        refuses_writes(proxy)
