"""A guest has arrived, and stands still there: who lets it go on, and who is told to.

The disks are real; each QEMU is a monitor that says what the test wants.
"""

import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import nbd
import pytest

from tests.migrate.way import TwoDisks, Way
from tests.support.command import impatient, interrupted
from tests.support.servers import wait_for


def test_a_guest_that_a_way_back_has_stopped_goes_on_where_its_disks_are_released(way: Way) -> None:
    way.source.close()
    way.destination.status = "paused"
    way.proxy.control.call("activate", hold=True)
    done = way.run("--lost", "source")
    assert done.returncode == 0, done.stderr
    assert way.destination.status == "running"


def test_a_mover_killed_after_the_release_says_that_the_guest_stands_still(way: Way) -> None:
    """A way back had stopped it; whether that was so, or a person's will, its guard can't know."""
    way.source.close()
    way.destination.status = "paused"
    way.proxy.control.call("activate", hold=True)
    process = way.begin("--lost", "source")
    killed_at_cont(way, process)
    said, _ = process.communicate(timeout=60)  # of its guard
    assert process.returncode == -signal.SIGKILL, said
    assert not way.proxy.status()["held"], said
    assert way.destination.status == "paused"
    assert "The disks belong to the destination, whose guest stands still: say `cont`" in said


def test_a_mover_killed_before_it_lets_a_guest_go_on_that_has_arrived_has_a_guard_that_does(
    way: Way,
) -> None:
    """The destination's QEMU was started with -S."""

    def arrive() -> None:
        way.source.status, way.source.migration = "postmigrate", "completed"
        way.destination.status = "paused"

    way.source.before["migrate-continue"] = arrive
    process = way.sending()
    killed_at_cont(way, process)
    way.source.stand_still()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said
    assert not way.proxy.status()["held"], said
    assert way.destination.status == "running", said


def killed_at_cont(way: Way, process: subprocess.Popen[str]) -> None:
    """The mover is killed before QEMU has heard its `cont`."""

    def killed() -> None:
        process.kill()
        process.wait()
        raise ConnectionResetError

    way.destination.before["cont"] = killed


def test_a_guest_that_stands_still_at_the_end_is_told(way: Way) -> None:
    way.source.close()
    way.destination.status = "paused"
    way.proxy.control.call("activate")
    way.proxy.wait()
    for arguments in ((), ("--settle",)):
        done = way.run(*arguments)
        assert done.returncode == 1
        assert "the guest stands still at the destination" in done.stderr
        assert "say `cont`" in done.stderr


@pytest.mark.parametrize("more", [(), ("--no-verify",)])
def test_what_is_waited_for_at_the_end_is_said(way: Way, more: tuple[str, ...]) -> None:
    switches(way)
    process = way.sending(*more, env=impatient(way.directory))
    way.source.stand_still()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "waiting for the guest's first I/O" in said
    assert ("comparing with the source" in said) is (not more)


def test_nobody_writes_while_the_guest_is_on_its_way(way: Way) -> None:
    switches(way)
    process = way.sending("--json", "--no-verify", env=impatient(way.directory))
    way.source.stand_still()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    lines = [json.loads(line) for line in said.splitlines()]
    owners = {line["stage"]: line["owner"] for line in lines if "stage" in line}
    assert owners == {
        **dict.fromkeys(("home", "starting", "memory", "paused"), "source"),
        **dict.fromkeys(("switching", "arrived"), "nobody"),
        **dict.fromkeys(("moved", "complete", "done"), "destination"),
    }


@pytest.mark.parametrize("before", [set(), {"events"}])
def test_a_move_that_has_ended_leaves_a_qemu_that_others_can_use(
    way: Way, before: set[str]
) -> None:
    way.destination.capabilities = set(before)
    switches(way)
    process = way.sending("--multifd", "4", env=impatient(way.directory))
    assert way.destination.capabilities == {"events", "multifd"}
    way.source.stand_still()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert way.destination.capabilities == before


def switches(way: Way) -> None:
    """QEMU's pause, when it is told to go on: the guest runs at the destination then."""

    def arrive() -> None:
        way.source.tell("STOP")
        way.arrived()
        way.destination.tell("RESUME")

    way.source.before["migrate-continue"] = arrive


def test_a_proxy_that_is_restarted_while_the_guest_is_on_its_way_is_told_again_to_seal(
    way: Way,
) -> None:
    way.leaves()
    process = way.sending()
    way.source.stand_still()
    wait_for(lambda: way.proxy.status()["seal_confirmed"], "the seal")
    way.proxy.kill()
    way.start_proxy()
    assert not way.proxy.status()["seal_confirmed"]
    way.arrived()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert way.disk == ("sealed", "complete")


def test_a_move_ends_whose_disk_has_moved_on_meanwhile(way: Way) -> None:
    way.arrived()
    way.proxy.control.call("activate")
    way.proxy.wait()
    way.proxy.control.call("seal")
    done = way.run()
    assert done.returncode == 0, done.stderr
    assert way.disk == ("sealed", "sealed")


def test_an_interruption_just_after_the_release_leads_nowhere_back(two: TwoDisks) -> None:
    """One disk could still be given back then, and the other not: the guest has written there."""

    def arrive() -> None:
        two.arrived()
        pool.submit(two.proxy2.connect().pwrite, b"waits for the release".ljust(4096, b"."), 0)

    with ThreadPoolExecutor(1) as pool:
        two.source.before["migrate-continue"] = arrive
        process = two.sending(env=interrupted(two.directory))
        two.source.stand_still()
        said, _ = process.communicate(timeout=90)
    assert process.returncode == 130, said
    assert "The guest and its disks are at the destination" in said
    for _, state in (two.disk, two.disk2):
        assert state in ("active", "complete"), said


def test_a_disk_that_is_outdated_is_not_said_to_have_arrived(two: TwoDisks) -> None:
    two.arrived()
    for proxy in (two.proxy, two.proxy2):
        proxy.control.call("activate", wait=True)
    wait_for(lambda: two.target2.control.call("identify")["moved"], "the source to know")
    two.target2.control.call("unseal", force=True)
    with suppress(nbd.Error):
        two.proxy2.connect().pread(4096, 0)  # what is absent here
    wait_for(lambda: two.proxy2.status()["state"] == "outdated", "the destination to know")
    for arguments in (("--settle",), ()):
        done = two.run(*arguments)
        assert done.returncode == 1, done.stdout
        assert "disk proxy-2: " in done.stderr
        assert "the source was unsealed by force" in done.stderr
        assert "There are two versions of a disk" in done.stderr
        assert "The guest and its disks are at the destination" not in done.stderr
