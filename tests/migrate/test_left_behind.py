"""Whoever moves a guest is interrupted, and loses his terminal, the QEMU or another's patience.

The disks are real; each QEMU is a monitor that says what the test wants, for no real one stands
still at a certain command, or can't be reached although it runs.
"""

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.migrate.way import Way, caught
from tests.support import command, servers
from tests.support.fake_guest import FakeMonitor
from tests.support.servers import wait_for


def _broken_pipe() -> tuple[int, int]:
    """What hears a process, and what it speaks to: as `2>&1 | tee`."""
    return os.pipe()


def _terminal() -> tuple[int, int]:
    """As a session of ssh."""
    return os.openpty()


@pytest.mark.parametrize("killed", [False, True], ids=["interrupted", "killed"])
@pytest.mark.parametrize("made", [_broken_pipe, _terminal])
def test_a_terminal_that_goes_leaves_no_guest_standing_still(
    way: Way, made: Any, killed: bool
) -> None:
    heard, spoken = made()
    try:
        process = way.sending(stdout=spoken, stderr=spoken)
    finally:
        os.close(spoken)
    way.source.stand_still()
    os.close(heard)
    process.send_signal(signal.SIGKILL if killed else signal.SIGINT)
    process.wait(30)
    wait_for(lambda: way.back, "the guest to go on at the source")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_end_the_way_back(way: Way, number: int) -> None:
    process = way.sending()
    way.source.stand_still()

    def once_more() -> None:
        process.send_signal(number)
        wait_for(lambda: not _pending(process.pid), "the signal to be heard")

    way.source.before["migrate_cancel"] = once_more
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "its guard" not in said  # it has come to the end by itself
    assert way.back


def _pending(pid: int) -> bool:
    """Whether a signal has not reached the process yet."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))


def test_a_move_under_nohup_hears_no_hangup(way: Way) -> None:
    """By what the kernel knows of the signal: nothing has to be waited for."""
    plain, under = way.sending(), ["nohup"]
    assert caught(plain.pid, signal.SIGHUP)
    plain.send_signal(signal.SIGHUP)
    plain.communicate(timeout=60)
    assert plain.returncode == 130
    way.source.migration = ""
    process = way.sending(before=under)
    assert not caught(process.pid, signal.SIGHUP)
    assert caught(process.pid, signal.SIGTERM)


def test_a_guest_that_was_left_frozen_is_thawed_by_the_same_command_and_moves(way: Way) -> None:
    agent = way.frozen_by(frozen=True)
    process = way.sending()
    assert "guest-fsfreeze-thaw" in agent.heard  # it may have been frozen anew by now
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert not agent.frozen


def test_a_frozen_guest_whose_qemu_can_not_be_reached_is_thawed_and_goes_on(way: Way) -> None:
    agent = way.frozen_by(frozen=False)
    process = way.sending()
    wait_for(lambda: agent.frozen, "the freeze")
    way.source.lose()
    process.wait(60)
    assert not agent.frozen
    way.source.stand_still()  # it has gone on to send, though nobody asked it to
    way.source.mute = False
    said, _ = process.communicate(timeout=60)  # of its guard, too
    assert process.returncode == 1
    assert "the source's QEMU can't be reached" in said
    assert "Traceback" not in said
    assert way.back


def test_a_link_that_breaks_off_is_not_the_end_of_the_guest_behind_it(way: Way) -> None:
    """It runs on there: a second one on the same disks would destroy them."""
    process = way.sending()
    way.source.before["query-migrate"] = way.source.lose
    process.wait(60)
    way.source.mute = False
    said, _ = process.communicate(timeout=60)  # of its guard, too
    assert process.returncode == 1
    assert "the connection to it was lost" in said
    assert "it has ended" not in said
    assert "only if its QEMU there is certain to have ended" in said


def test_a_qemu_that_is_lost_just_before_the_switch_is_asked_again_later(way: Way) -> None:
    process = way.sending()
    way.source.before["migrate-continue"] = way.source.lose
    way.source.stand_still()
    process.wait(60)
    way.source.mute = False
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "guard goes on trying" in said
    assert "The guest is at the source, its disks are writable there" in said
    assert way.back


def receiving(way: Way) -> list[tuple[str, str]]:
    """The destination's QEMU does so; where the disk is when that is told to end."""
    found: list[tuple[str, str]] = []
    way.destination.migration = "active"
    way.destination.before["quit"] = lambda: found.append(way.disk)
    return found


@pytest.mark.parametrize("place", ["query-migrate", "migrate_cancel"])
def test_a_qemu_that_still_receives_is_ended_when_the_one_that_sends_is_lost(
    way: Way, place: str
) -> None:
    """Else the guest may be paused later, and nobody lets it go on."""
    process = way.sending("--bandwidth", "80M")
    found = receiving(way)
    way.source.before[place] = way.source.lose
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert found == [("complete", "standby")]
    way.source.status, way.source.migration = "running", "failed"
    way.destination.close()
    way.source.mute = False
    said, _ = process.communicate(timeout=60)  # of its guard, too
    assert "The guest is at the source, its disks are writable there" in said
    assert "pause-before-switchover" not in way.source.capabilities
    assert way.source.limits == FakeMonitor.LIMITS


def test_a_qemu_that_may_have_all_of_the_guest_is_stopped_when_the_one_that_sends_is_lost(
    way: Way,
) -> None:
    """What it has may be all that there is."""

    way.leaves()
    process = way.sending()
    found = receiving(way)
    way.source.stand_still()
    wait_for(lambda: way.proxy.status()["seal_confirmed"], "the seal")
    way.source.lose()
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert way.destination.heard[-1] == "stop"
    way.arrived()
    way.destination.status = "paused"
    way.source.mute = False
    said, _ = process.communicate(timeout=60)
    assert way.source.status == "running", said
    assert found == [("complete", "standby")]


def test_a_guest_stands_still_only_so_long_for_a_source_that_can_not_be_sealed(way: Way) -> None:
    process = way.sending("--wait", env=command.impatient(way.directory))
    way.link.cut()
    way.source.stand_still()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "the sources were not all sealed within 2 s" in said
    assert "migrate-continue" not in way.source.heard
    assert way.back


def test_a_guest_goes_on_at_the_source_while_its_other_qemu_waits_for_a_dead_disk(way: Way) -> None:
    """Between `stop` and its answer, which comes when that QEMU's requests have ended."""
    went_on = []

    def arrive() -> None:
        way.arrived()
        way.proxy.kill()

    def hang() -> None:
        way.destination.tell("STOP")
        wait_for(lambda: way.source.status == "running", "the guest to go on at the source")
        went_on.append(True)

    way.source.before["migrate-continue"] = arrive
    way.destination.before["stop"] = hang
    process = way.sending()
    way.source.stand_still()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert went_on, said
    assert way.destination.heard[-2:] == ["stop", "quit"]


def test_a_proxy_that_is_back_before_it_is_looked_at_again_gives_its_disk_back(way: Way) -> None:
    """Else the destination's QEMU, which is ended last, waits for its writes: for ever."""
    found = []

    def arrive() -> None:
        way.arrived()
        way.proxy.kill()

    way.source.before["migrate-continue"] = arrive
    way.source.before["cont"] = way.start_proxy
    way.destination.before["quit"] = lambda: found.append(way.disk)
    process = way.sending()
    way.source.stand_still()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert found == [("complete", "standby")]


#: the source is at its seal when there is a file `asked`, and has made or refused it when `over`
_SLOW_SEAL = """
import time as _time
from relocator.running.lifecycle import Lifecycle as _Lifecycle
_seal = _Lifecycle.seal
def _slow(self, *arguments, **more):
    Path({at!r}, "asked").touch()
    while not Path({at!r}, "go").exists():
        _time.sleep(0.01)
    try:
        _seal(self, *arguments, **more)
    finally:
        Path({at!r}, "over").touch()
_Lifecycle.seal = _slow
"""


class Slow:
    """A move whose proxy dies when its source is at the seal, which is over once `let_go`."""

    def __init__(self, directory: Path, ends: ExitStack) -> None:
        self.asked, self.over, self.go = (directory / name for name in ("asked", "over", "go"))
        file = servers.mistaken(directory, _SLOW_SEAL.format(at=str(directory)))
        self.way = Way(directory, ends, file=file)
        self.environment = command.impatient(directory)

    def begin(self) -> subprocess.Popen[str]:
        """Until the source is asked."""
        process = self.way.sending(env=self.environment)
        self.way.source.stand_still()
        wait_for(self.asked.exists, "the source to be asked for its seal")
        return process

    def killed_with_proxy(self) -> str:
        """Both the mover and the proxy are; what its guard says, once the guest is back."""
        process = self.begin()
        self.way.proxy.kill()
        process.kill()
        said, _ = process.communicate(timeout=60)
        assert self.way.source.status == "running", said
        return said

    def let_go(self) -> None:
        self.go.touch()
        wait_for(self.over.exists, "the seal")


def test_a_seal_that_reaches_the_source_when_its_guest_is_long_back_is_refused(
    tmp_path: Path,
) -> None:
    with ExitStack() as ends:
        slow = Slow(tmp_path, ends)
        way = slow.way
        way.source.before["migrate-continue"] = way.arrived
        process = slow.begin()
        way.proxy.kill()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 1, said
        assert way.source.status == "running", said
        slow.let_go()
        assert way.target.status()["state"] == "complete", said
        assert "only now" not in said
        way.start_proxy()
        way.destination.status = "inmigrate"
        done = way.run("--settle")
        assert done.returncode == 0, done.stderr
        assert way.disk == ("complete", "standby")


def test_a_guard_that_never_heard_from_the_proxy_undoes_a_seal_that_comes_soon(
    tmp_path: Path,
) -> None:
    """It doesn't know the seal's name, so it can't have it refused."""
    with ExitStack() as ends:
        slow = Slow(tmp_path, ends)
        slow.way.source.before["migrate_cancel"] = slow.let_go
        said = slow.killed_with_proxy()
        assert slow.way.target.status()["state"] == "complete", said
        assert "its proxy can't be asked" not in said


def test_a_guard_that_never_heard_from_the_proxy_says_what_may_come_late(tmp_path: Path) -> None:
    with ExitStack() as ends:
        slow = Slow(tmp_path, ends)
        said = slow.killed_with_proxy()
        assert "disk proxy: its proxy can't be asked; should a seal that it has asked for" in said
        slow.let_go()
        assert slow.way.target.status()["state"] == "sealed"
        slow.way.target.control.call("unseal", force=True)
        assert slow.way.target.status()["state"] == "complete"


def test_a_second_command_leaves_a_move_that_is_under_way_alone(way: Way) -> None:
    process = way.sending()
    wait_for(lambda: way.disk == ("complete", "activating"), "the disk to be held")
    other = way.run()
    assert other.returncode == 1
    assert "is another client connected to its QMP socket?" in other.stderr
    assert "Traceback" not in other.stderr
    assert way.disk == ("complete", "activating")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert way.back


def test_what_a_guest_wrote_at_a_site_that_died_before_the_source_heard_of_it_is_not_given_up(
    way: Way,
) -> None:
    """Its QEMU was started again, its proxy not yet; the source's can't know of the release."""
    written = b"acknowledged and flushed".ljust(4096, b".")
    way.arrived()
    way.proxy.control.call("activate", hold=True)
    wait_for(lambda: way.proxy.status()["seal_confirmed"], "the seal")
    way.link.cut()
    way.proxy.control.call("release")
    wait_for(lambda: way.proxy.status()["state"] != "activating", "its writes to pass")
    guest = way.proxy.connect()
    guest.pwrite(written, 0)
    guest.flush()
    way.proxy.kill()
    way.destination.status = "inmigrate"
    process = way.begin()
    process.wait(60)
    assert process.returncode == 1
    assert way.target.status()["state"] == "sealed"
    assert way.source.status == "postmigrate"
    way.link.mend()
    way.start_proxy()
    said, _ = process.communicate(timeout=60)  # of its guard, too
    assert "add --lost destination" in said
    done = way.run()
    assert done.returncode == 0, done.stderr
    assert way.proxy.connect().pread(len(written), 0) == written


@pytest.mark.parametrize("settle", [[], ["--settle"]])
def test_a_destination_that_was_lost_when_the_source_knew_of_the_release_is_told_what_helps(
    way: Way, settle: list[str]
) -> None:
    way.arrived()
    way.proxy.control.call("activate")
    wait_for(lambda: way.target.control.call("identify")["moved"], "the source to know")
    way.proxy.kill()
    way.destination.close()
    lost = ("--lost", "destination")
    done = way.run(*lost, *settle, timeout_s=15)
    assert done.returncode == 1, done.stderr
    assert "--lost destination: disk proxy: its source knows that the guest's writes" in done.stderr
    assert "relocator unseal --force" in done.stderr
    assert way.target.status()["state"] == "sealed"
    way.target.control.call("unseal", force=True)
    done = way.run(*lost, "--settle")
    assert done.returncode == 0, done.stderr
    assert way.source.status == "running"
    assert way.target.status()["state"] == "complete"


@pytest.mark.parametrize("held", [False, True])
def test_a_guest_whose_source_is_lost_is_known_not_to_be_at_the_destination(
    way: Way, held: bool
) -> None:
    if held:
        way.proxy.control.call("activate", hold=True, seal=False)
    way.source.close()
    way.target.kill()
    done = way.run("--settle", "--lost", "source")
    assert done.returncode == 1
    assert "The guest is not at the destination" in done.stderr
    assert "The disks are at the source, unless they have moved elsewhere" in done.stderr
    assert ("--lost source: no disk is held" in done.stderr) is not held
    assert way.proxy.status()["state"] == "standby"


@pytest.mark.parametrize("site", ["source", "destination"])
def test_no_move_is_begun_with_a_site_that_is_lost(way: Way, site: str) -> None:
    done = way.run("--lost", site, timeout_s=15)
    assert done.returncode == 1, done.stderr
    assert f"--lost {site}: is for the end of an interrupted move" in done.stderr
    assert "The guest is at the source, its disks are writable there" in done.stderr
    assert way.source.heard == way.destination.heard == []
    assert way.disk == ("complete", "standby")


def test_a_move_that_came_to_nothing_leaves_a_qemu_that_others_can_use(way: Way) -> None:
    process = way.sending("--bandwidth", "80M", "--downtime-limit", "77")
    assert "pause-before-switchover" in way.source.capabilities
    assert way.source.limits == {"max-bandwidth": 10_000_000, "downtime-limit": 77}
    before = FakeMonitor.LIMITS
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert way.back, said
    assert not way.source.capabilities & {"pause-before-switchover", "multifd"}
    assert way.source.limits == before


#: left by a move whose guard was killed, too
_LEFT = {"max-bandwidth": 1, "downtime-limit": 0}


def test_a_move_has_none_of_the_limits_of_another_one(way: Way) -> None:
    way.source.limits = dict(_LEFT)
    process = way.sending()
    assert way.source.limits == FakeMonitor.LIMITS
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert way.back, said


@pytest.mark.parametrize("frozen", [None, False, True])
def test_a_move_that_goes_on_where_another_was_has_its_own_limits(
    way: Way, frozen: bool | None
) -> None:
    if frozen is not None:
        way.frozen_by(frozen=frozen)
    way.source.migration, way.source.limits = "active", dict(_LEFT)
    way.proxy.control.call("activate", hold=True, seal=False)
    process = way.begin("--bandwidth", "80M")
    wanted = {"max-bandwidth": 10_000_000, "downtime-limit": 0 if frozen is False else 300}
    wait_for(lambda: way.source.limits == wanted, "its limits")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert way.back, said
    assert way.source.limits == FakeMonitor.LIMITS
