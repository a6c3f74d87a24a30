"""A part of a move can't be asked, and answers again later: no site is given what another has.

The disks are real; each QEMU is a monitor that says what the test wants.
"""

import os
import signal
import time

import nbd
import pytest

from tests.migrate.way import TwoDisks, Way, caught, guard_of
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

    The guard is killed. Then all answers again, and the guest is shut down at the source.
    """
    way.source.before["migrate-continue"] = way.arrived
    process = way.sending(env=command.impatient(way.directory))
    hidden = proxy.control_path.with_name("hidden")
    way.source.stand_still()
    wait_for(lambda: way.destination.status == "running", "arrival")
    wait_for(lambda: proxy.status()["seal_confirmed"], "the seal")
    way.destination.lose()
    proxy.control_path.rename(hidden)
    guard = guard_of(process)
    process.wait(90)
    os.kill(guard, signal.SIGKILL)
    assert way.source.status == "running"
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


def test_a_guest_that_could_not_be_stopped_at_the_destination_is_told_and_ended_later(
    way: Way,
) -> None:
    way.source.before["migrate-continue"] = way.arrived
    process = way.sending(env=command.impatient(way.directory))
    way.link.cut()  # the source can't be sealed yet
    way.source.stand_still()
    wait_for(lambda: way.destination.status == "running", "arrival")
    way.destination.lose()
    process.wait(90)
    assert way.source.status == "running"
    assert way.destination.status == "running"
    way.destination.mute = False
    said, _ = process.communicate(timeout=90)  # of its guard, too
    assert "which may run it, too, on disks that refuse its writes: end it" in said
    assert "Its guard goes on trying" in said
    assert way.destination.heard[-2:] == ["stop", "quit"]


@pytest.mark.parametrize("elsewhere", ["sent", "being sent"])
def test_a_guard_that_waits_for_the_destination_leaves_a_later_move_alone(
    way: Way, elsewhere: str
) -> None:
    way.source.before["migrate-continue"] = way.arrived
    process = way.sending(env=command.impatient(way.directory))
    way.link.cut()
    way.source.stand_still()
    wait_for(lambda: way.destination.status == "running", "arrival")
    way.destination.lose()
    process.wait(90)
    way.link.mend()
    wait_for(lambda: way.disk == ("complete", "standby"), "the guest's disk at the source")
    time.sleep(5)  # the guard has looked
    way.source.heard.clear()
    if elsewhere == "sent":
        way.source.status, way.source.migration = "postmigrate", "completed"
    else:
        way.source.migration = "active"
    process.communicate(timeout=60)  # its guard, too, has ended
    assert not {"cont", "migrate_cancel", "migrate-cancel"} & {*way.source.heard}


def test_a_qemu_that_ended_as_it_was_told_is_not_said_to_run_the_guest(way: Way) -> None:
    way.source.before["migrate-continue"] = way.arrived
    way.destination.before["quit"] = way.destination.lose  # as ssh shows it: nobody answers
    process = way.sending(env=command.impatient(way.directory))
    way.link.cut()
    way.source.stand_still()
    wait_for(lambda: way.destination.status == "running", "arrival")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=90)  # of its guard, too: it has ended
    way.link.mend()
    assert way.destination.heard[-2:] == ["stop", "quit"]
    assert "may run it, too" not in said


def test_a_guest_that_came_by_migration_itself_was_not_sent(way: Way) -> None:
    way.source.migration, way.source.amounts = "completed", False
    way.destination.lose()
    done = way.run("--settle")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("asked", range(5))
def test_a_guest_that_may_run_twice_is_said_whenever_its_qemu_answers_again(
    way: Way, asked: int
) -> None:
    way.source.migration = "completed"
    way.destination.status = "running"
    way.destination.mute_to = asked
    done = way.run("--settle")
    assert done.returncode == 1, done.stdout
    assert "the guest may run at the destination, too" in done.stderr


def test_nothing_is_settled_while_the_guest_may_run_at_the_destination_too(way: Way) -> None:
    way.arrived()
    way.proxy.control.call("activate", hold=True)
    wait_for(lambda: way.proxy.status()["seal_confirmed"], "the seal")
    way.destination.lose()
    for _ in range(2):
        done = way.run("--settle")
        assert way.source.status == "running"
        assert done.returncode == 1
        assert "the guest may run at the destination, too" in done.stderr
    done = way.run("--settle", "--lost", "destination")
    assert done.returncode == 0, done.stderr


def test_a_connection_that_breaks_off_as_the_guest_arrives_is_made_anew(way: Way) -> None:
    way.leaves()
    process = way.sending(env=command.impatient(way.directory))
    way.source.stand_still()
    wait_for(lambda: way.source.migration == "device", "the guest to be on its way")
    way.destination.lose()
    time.sleep(0.3)
    way.destination.mute = False
    way.arrived()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said


def test_no_disk_goes_back_while_another_may_have_been_released(two: TwoDisks) -> None:
    """The mover was killed between two releases; the released disk's proxy has died since."""
    two.arrived()
    for proxy in (two.proxy, two.proxy2):
        proxy.control.call("activate", hold=True)
        wait_for(lambda proxy=proxy: proxy.status()["seal_confirmed"], "the seal")
    two.link.cut()  # its source can't be told
    two.proxy.control.call("release")
    wait_for(lambda: two.proxy.status()["state"] != "activating", "its writes to pass")
    write(two.proxy, b"acknowledged at the destination")
    two.proxy.kill()
    process = two.begin(env=command.impatient(two.directory))
    process.wait(90)
    assert two.disk2 == ("sealed", "activating")
    two.link.mend()
    two.start_proxy()
    said, _ = process.communicate(timeout=90)  # of its guard, too
    assert "it may have been released already. Start it again" in said
    assert "The guest is at the destination; its writes wait there" in said
    assert "to let the guest go on at the source" not in said
    for _, state in (two.disk, two.disk2):
        assert state in ("active", "complete")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_guard_that_is_ended_with_its_mover_is_not_promised(way: Way, number: int) -> None:
    """The stop of a unit is told to all its processes; the guard takes that for its mover's."""
    process = way.sending(env=command.impatient(way.directory))
    way.source.stand_still()
    guard = guard_of(process)
    wait_for(lambda: caught(guard, signal.SIGTERM), "the guard to wait")
    way.source.lose()
    for pid, ended_by in ((guard, number), (process.pid, signal.SIGTERM)):
        os.kill(pid, ended_by)
    process.wait(90)
    way.source.mute = False
    said, _ = process.communicate(timeout=90)  # of its guard, too
    lives = number == signal.SIGTERM
    assert ("Its guard goes on trying" in said) is lives
    assert way.back is lives
