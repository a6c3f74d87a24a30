"""The disks of one VM are taken over, and given back, together."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from relocator import group
from relocator.cli.main import main
from relocator.client import Client
from relocator.errors import RelocatorError
from tests.nbd.test_activation import Source, standby, state, until, waits
from tests.support.command import catches, relocator, started
from tests.support.servers import Server, mistaken, wait_for

#: a release waits until a file is there
_SLOW_RELEASE = """
import time as _time
from relocator.running.lifecycle import Lifecycle as _Lifecycle
_release = _Lifecycle.release
def _slow(self):
    Path({began!r}).touch()
    while not Path({go!r}).exists():
        _time.sleep(0.01)
    _release(self)
_Lifecycle.release = _slow
"""


@pytest.fixture
def guest() -> Iterator[Callable[..., Future[Any]]]:
    """Requests whose answers may take a while."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def two_disks(directory: Path) -> tuple[list[Source], list[Path]]:
    """Two disks at their source, and for each a directory of its copy."""
    sources = [Source(directory, name) for name in ("one", "two")]
    sites = [source.directory / "copy" for source in sources]
    for site in sites:
        site.mkdir()
    return sources, sites


def test_the_disks_of_a_vm_are_taken_over_all_or_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], guest: Any
) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, sources[1].serve() as second:
        with standby(sites[0], first) as one, standby(sites[1], second) as two:
            controls = [str(one.control_path), str(two.control_path)]
            assert main(["activate", "--hold", *controls]) == 0
            written = guest(one.connect().pwrite, b"mine", 0)
            second.kill()
            wait_for(lambda: one.control.call("status")["seal_confirmed"], "the first seal")
            assert waits(written)
            with sources[1].serve() as again:
                assert main(["release", *controls]) == 0
                written.result(30)
                until(one, "active")
                until(two, "active")
                again.kill()  # rather than to wait for its client


def test_what_one_disk_refuses_none_has_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, sources[1].serve() as second:
        with standby(sites[0], first) as one, standby(sites[1], second, "retry-timeout=1") as two:
            second.kill()
            assert main(["activate", str(one.control_path), str(two.control_path)]) == 1
            assert "the disk was not taken over" in capsys.readouterr().err
            assert (state(one), state(two)) == ("standby", "standby")
            until(first, "complete")
            first.connect().pwrite(b"at home", 0)
            with sources[1].serve() as again:
                group.activate([one.control, two.control])
                group.release([one.control, two.control])
                until(two, "active")
                again.kill()


def test_a_mistyped_disk_is_named_once_and_the_others_are_said_to_be_as_before(
    tmp_path: Path,
) -> None:
    source = Source(tmp_path)
    with source.serve() as target, standby(tmp_path, target) as proxy:
        done = relocator("activate", str(proxy.control_path), str(tmp_path / "mistyped"))
        assert (done.returncode, state(proxy), state(target)) == (1, "standby", "complete")
        assert done.stderr.count("is the plugin running?") == 1
        assert "no other disk was taken over" in done.stderr


def test_a_disk_that_can_not_be_asked_gives_none_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], guest: Any
) -> None:
    """The VM may run here by now."""
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, standby(sites[0], first) as one:
        control = str(one.control_path)
        assert main(["activate", "--hold", control]) == 0
        written = guest(one.connect().pwrite, b"mine", 0)
        assert main(["release", control, str(tmp_path / "mistyped")]) == 1
        said = capsys.readouterr().err
        assert "mistyped" in said and "nothing was given back" in said
        assert one.control.call("status")["held"] and waits(written)
        assert main(["release", control]) == 0
        written.result(30)


@pytest.mark.parametrize("verb", ["activate", "release"])
def test_a_disk_that_was_here_before_stays_whatever_another_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, sources[1].serve() as second:
        with standby(sites[0], first) as one, standby(sites[1], second, "retry-timeout=1") as two:
            one.control.call("activate", wait=True)  # its guest runs here, and has written nothing
            second.kill()
            assert main([verb, str(one.control_path), str(two.control_path)]) == 1
            assert capsys.readouterr().err
            assert (state(one), state(two)) == ("active", "standby")
            one.connect().pwrite(b"mine", 0)
            with sources[1].serve() as again:
                wait_for(lambda: state(again) != "sealed", "the way back")
                again.kill()


def test_a_held_disk_that_was_restarted_is_released_with_the_others(
    tmp_path: Path, guest: Any
) -> None:
    """It has forgotten that its seal was confirmed, and asks for it when it is told to only."""
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, sources[1].serve() as second:
        with standby(sites[0], first) as one, standby(sites[1], second) as two:
            controls = [str(one.control_path), str(two.control_path)]
            assert main(["activate", "--hold", *controls]) == 0
            wait_for(lambda: one.status()["seal_confirmed"], "the first seal")
            one.kill()
            with standby(sites[0], first) as again:
                assert not again.status()["seal_confirmed"]
                written = guest(again.connect().pwrite, b"mine", 0)
                assert waits(written)
                assert relocator("release", *controls).returncode == 0
                written.result(30)
                until(again, "active")
                until(two, "active")


class Busy:
    """A disk that can't be asked how it is: too many others ask."""

    def __init__(self, disk: group.Disk) -> None:
        self._disk = disk

    def call(self, verb: str, patience_s: float | None = 60.0, **arguments: Any) -> Any:
        if verb == "status":
            raise RelocatorError("too many others ask")
        return self._disk.call(verb, patience_s, **arguments)


def test_a_disk_that_was_here_before_and_can_not_be_asked_is_not_given_back(tmp_path: Path) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, standby(sites[0], first) as one:
        one.control.call("activate", wait=True)
        with pytest.raises(RelocatorError, match=r"mistyped.*not undone: too many others ask"):
            group.activate([Busy(one.control), Client(tmp_path / "mistyped")])
        assert state(one) == "active"


class Looked:
    """A disk, and how often it was looked at."""

    def __init__(self, disk: group.Disk) -> None:
        self._disk = disk
        self.looks = 0

    def call(self, verb: str, patience_s: float | None = 60.0, **arguments: Any) -> Any:
        self.looks += verb == "status"
        return self._disk.call(verb, patience_s, **arguments)


def test_a_held_disk_that_is_restarted_while_another_s_seal_is_waited_for_is_told_again(
    tmp_path: Path, guest: Any
) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, sources[1].serve() as second, standby(sites[0], first) as one:
        first.kill()
        with standby(sites[1], second) as two:
            group.activate([one.control, two.control])
            wait_for(lambda: two.status()["seal_confirmed"], "the second seal")
            waited_for = Looked(one.control)
            released = guest(group.release, [waited_for, two.control])
            wait_for(lambda: waited_for.looks > 2, "the first seal to be waited for")
            two.kill()
        with standby(sites[1], second) as again, sources[0].serve() as back:
            assert not again.status()["seal_confirmed"]
            released.result(30)
            until(one, "active")
            until(again, "active")
            back.kill()  # rather than to wait for its client


def test_what_was_only_made_ready_is_sealed_by_its_release(tmp_path: Path) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, standby(sites[0], first) as one:
        one.control.call("activate", hold=True, seal=False)
        assert relocator("release", str(one.control_path)).returncode == 0
        until(one, "active")


def test_a_release_takes_over_nothing_that_was_given_back(tmp_path: Path) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, standby(sites[0], first) as one:
        control = str(one.control_path)
        assert relocator("activate", "--hold", control).returncode == 0
        assert relocator("withdraw", control).returncode == 0
        done = relocator("release", control)
        assert (done.returncode, state(one)) == (1, "standby")
        assert "nothing was activated, or it was withdrawn" in done.stderr
        assert not sources[0].sealed


def test_a_release_of_what_was_never_activated_does_not_say_that_it_was_withdrawn(
    tmp_path: Path,
) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, standby(sites[0], first) as one:
        done = relocator("release", str(one.control_path))
        assert (done.returncode, state(one)) == (1, "standby")
        assert "the disk is in standby: nothing was activated, or it was withdrawn" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("verb", ["activate", "release"])
def test_disks_whose_command_is_interrupted_before_all_are_sealed_go_back(
    tmp_path: Path, verb: str, number: int
) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, sources[1].serve() as second:
        with standby(sites[0], first) as one, standby(sites[1], second) as two:
            controls = [str(one.control_path), str(two.control_path)]
            second.kill()
            if verb == "release":
                assert relocator("activate", "--hold", *controls).returncode == 0
            with started(verb, *controls, stderr=subprocess.PIPE) as command:
                wait_for(lambda: catches(command, signal.SIGTERM), "the command to begin")
                wait_for(lambda: one.status()["seal_confirmed"], "the first seal")
                command.send_signal(number)
                _, said = command.communicate(timeout=30)
            assert command.returncode == 130, said
            assert (state(one), state(two), state(first)) == ("standby", "standby", "complete")
            assert f"{controls[0]}: standby, it is at its source\n" in said
            assert f"{controls[1]}: standby, it is at its source (withdrawn here, but" in said
            with sources[1].serve() as again:
                again.connect().pwrite(b"at home", 0)


@pytest.mark.parametrize("how", [["--wait"], ["--wait", "--hold"]], ids=["wait", "hold"])
def test_one_disk_that_is_waited_for_goes_back_if_that_is_interrupted(
    tmp_path: Path, how: list[str]
) -> None:
    source = Source(tmp_path)
    with source.serve() as target, standby(tmp_path, target) as proxy:
        control = str(proxy.control_path)
        target.kill()
        with started("activate", control, *how, stderr=subprocess.PIPE) as command:
            until(proxy, "activating")
            command.send_signal(signal.SIGINT)
            _, said = command.communicate(timeout=30)
        assert (command.returncode, state(proxy)) == (130, "standby"), said
        assert f"{control}: standby, it is at its source (withdrawn here, but" in said
        with source.serve() as again:
            wait_for(lambda: not proxy.control.call("identify")["withdrawn"], "the source's word")
            assert (state(again), state(proxy)) == ("complete", "standby")
            assert relocator("activate", control, *how).returncode == 0
            assert (state(again), proxy.status()["held"]) == ("sealed", "--hold" in how)
            proxy.kill()  # the source would wait for it to go


def test_one_disk_that_goes_on_by_itself_is_not_given_back_but_that_is_said(
    tmp_path: Path,
) -> None:
    source = Source(tmp_path)
    with source.serve() as target, standby(tmp_path, target) as proxy:
        control = str(proxy.control_path)
        target.kill()
        assert relocator("activate", control).returncode == 0  # its guest may run here by now
        with started("activate", control, "--wait", stderr=subprocess.PIPE) as command:
            wait_for(lambda: catches(command, signal.SIGTERM), "the command to begin")
            command.send_signal(signal.SIGINT)
            _, said = command.communicate(timeout=30)
        assert (command.returncode, state(proxy)) == (130, "activating"), said
        assert "nothing holds it: it goes on by itself; `relocator withdraw" in said
        proxy.kill()


@contextmanager
def silent(server: Server) -> Iterator[None]:
    """The server is there, and says nothing."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("how", [[], ["--wait"]], ids=["at once", "wait"])
def test_an_interrupted_command_takes_nothing_over_once_its_source_answers(
    tmp_path: Path, how: list[str]
) -> None:
    """The disk was given back before, over a link that is silent: that comes first."""
    source = Source(tmp_path)
    with source.serve() as target, standby(tmp_path, target) as proxy:
        control = str(proxy.control_path)
        assert relocator("activate", control, "--hold", "--wait").returncode == 0
        with silent(target):
            assert "the source can't be told" in relocator("withdraw", control).stderr
            with started("activate", control, *how, stderr=subprocess.PIPE) as command:
                wait_for(lambda: catches(command, signal.SIGTERM), "the command to begin")
                time.sleep(0.5)  # it has asked by then, and waits
                command.send_signal(signal.SIGTERM)
                assert command.stderr is not None
                assert "is given back" in command.stderr.readline()  # so it has hung up
                target.process.send_signal(signal.SIGCONT)
                _, said = command.communicate(timeout=45)
        assert (command.returncode, said) == (130, f"{control}: standby, it is at its source\n")
        wait_for(lambda: not proxy.control.call("identify")["withdrawn"], "the source's word")
        time.sleep(0.5)
        assert (state(proxy), state(target)) == ("standby", "complete")
        assert relocator("activate", control, "--wait").returncode == 0


@pytest.mark.parametrize("how", [[], ["--hold"]], ids=["wait", "hold"])
def test_a_proxy_that_dies_while_it_is_waited_for_is_said_to_be_held(
    tmp_path: Path, how: list[str]
) -> None:
    source = Source(tmp_path)
    with source.serve() as target, standby(tmp_path, target) as proxy:
        control = str(proxy.control_path)
        target.kill()
        with started("activate", control, "--wait", *how, stderr=subprocess.PIPE) as command:
            until(proxy, "activating")
            proxy.kill()
            _, said = command.communicate(timeout=30)
        assert command.returncode == 1
        assert f"{control}: not known; it may be held: once it answers, `relocator release" in said
        with source.serve() as again, standby(tmp_path, again) as back:
            assert (state(back), back.status()["held"]) == ("activating", True)
            assert relocator("release", control).returncode == 0
            until(back, "active")
            back.kill()


def test_a_disk_that_an_interrupted_command_can_not_give_back_is_said_to_be_held(
    tmp_path: Path,
) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, sources[1].serve() as second:
        with standby(sites[0], first) as one, standby(sites[1], second) as two:
            controls = [str(one.control_path), str(two.control_path)]
            second.kill()
            with started("activate", *controls, stderr=subprocess.PIPE) as command:
                wait_for(lambda: one.status()["seal_confirmed"], "the first seal")
                two.kill()
                command.send_signal(signal.SIGINT)
                _, said = command.communicate(timeout=30)
            assert command.returncode == 130
            assert f"once it answers, `relocator withdraw {controls[1]}` gives it back" in said
            assert (state(one), state(first)) == ("standby", "complete")


def test_a_release_that_has_begun_is_not_interrupted_and_goes_on_where_it_failed(
    tmp_path: Path,
) -> None:
    sources, sites = two_disks(tmp_path)
    began, go = tmp_path / "began", tmp_path / "go"
    slow = mistaken(tmp_path, _SLOW_RELEASE.format(began=str(began), go=str(go)))
    with sources[0].serve() as first, sources[1].serve() as second:
        with standby(sites[0], first) as one:
            with standby(sites[1], second, file=slow) as two:
                controls = [str(one.control_path), str(two.control_path)]
                with started("activate", *controls, stderr=subprocess.PIPE) as command:
                    wait_for(began.exists, "the release")
                    command.send_signal(signal.SIGINT)
                    until(one, "active")
                    two.kill()
                    _, said = command.communicate(timeout=30)
            assert command.returncode == 1
            assert "all are sealed, but not all released: " in said
            assert "`release` them again" in said
            with standby(sites[1], second) as again:
                assert relocator("release", *controls).returncode == 0
                until(again, "active")
                assert state(one) == "active"
