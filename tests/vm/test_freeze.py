"""A guest's file systems are frozen around the seal: what is sealed is clean, and all is thawed.

Thawed means: the guest's work goes on, wherever it is. A frozen one acknowledges nothing.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.guest.prepared import Prepared
from testbed.guest.site import Server
from testbed.guest.vm import Vm
from tests.migrate.sites import Sites, standing
from tests.support.command import impatient
from tests.vm.moves import World, control

pytestmark = pytest.mark.timeout(600)
FAST = ("--bandwidth", "8G")
BEFORE_ARRIVAL = ("frozen", "paused")
AFTERWARDS = ("continued", "switching", "arrived", "sealed", "moved", "released")


class Frozen(World):
    """The guest at site a, a QEMU that waits for it at b, and the command that moves it."""

    def begin(self) -> None:
        self.at_source = self.target("a", store=self.directory / "maps")
        self.guest = self.wake("a", self.at_source)
        self.proxy = self.sites["b"].proxy(self.at_source.uri, "mode=standby")
        self.other = self.arriving("b", self.proxy)

    def arguments(self, *more: str, freeze: str | None = None) -> list[str]:
        for vm in (self.guest, self.other):
            vm.release_monitor()
        words = ["--from", str(self.guest.qmp), "--to", str(self.other.qmp)]
        words += ["--uri", str(self.other.incoming)]
        words += ["--disk", f"{self.at_source.control},{self.proxy.control}"]
        freeze = freeze or f"{self.guest.directory / 'agent'},{self.other.directory / 'agent'}"
        return [*words, "--freeze", freeze, *more]

    def works(self, vm: Vm) -> None:
        vm.wait_for_acknowledged(vm.report.count(b"ack,") + 20, 60)

    def moves(self) -> subprocess.CompletedProcess[str]:
        done = Sites.run(*self.arguments("--json", *FAST), timeout_s=200)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def prove_moved(self) -> None:
        """The sealed image is clean, and the guest has worked on at the destination."""
        self.works(self.other)
        assert needs_nothing(self.at_source)
        self.guest.quit()
        self.way.append(self.other)
        self.supervisor.cut_off(self.at_source.process)
        self.prove(self.proxy)


def needs_nothing(server: Server) -> bool:
    """Whether a disk's file system is clean, and its journal has nothing to be replayed."""
    done = subprocess.run(
        ["e2fsck", "-fn", str(server.image)], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and "journal" not in done.stdout + done.stderr


@pytest.fixture
def frozen(origin_with_agent: Prepared, tmp_path: Path) -> Iterator[Frozen]:
    with Frozen(tmp_path, origin_with_agent) as world:
        world.begin()
        yield world


def test_what_is_sealed_is_clean_and_the_guest_works_on(frozen: Frozen) -> None:
    assert not needs_nothing(frozen.at_source)  # as long as it is written to
    assert '"frozen_s": null' not in frozen.moves().stdout
    frozen.prove_moved()


def interrupt(_world: Frozen, process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


def kill(_world: Frozen, process: subprocess.Popen[str]) -> None:
    process.kill()


def kill_with_guard(_world: Frozen, process: subprocess.Popen[str]) -> None:
    """Nobody is left who knows of the freeze."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGSTOP)
    for child in children:
        subprocess.run(["kill", "-9", child], check=True)
    process.kill()


def kill_destination(world: Frozen, process: subprocess.Popen[str]) -> None:
    world.other.kill()
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


Break = Callable[[Frozen, subprocess.Popen[str]], None]


def _cases() -> list[object]:
    """All pairs, for `make matrix`; `make test` runs some of them."""
    usual = {("frozen", interrupt), ("paused", kill), ("paused", kill_destination)}
    usual |= {("frozen", kill_with_guard), ("released", kill), ("moved", interrupt)}
    return [
        pytest.param(
            place,
            break_it,
            id=f"{place}-{break_it.__name__}",
            marks=[] if (place, break_it) in usual else [pytest.mark.matrix],
        )
        for place in (*BEFORE_ARRIVAL, *AFTERWARDS)
        for break_it in (interrupt, kill, kill_with_guard, kill_destination)
        if break_it is not kill_destination or place in BEFORE_ARRIVAL  # else the guest is lost
    ]


@pytest.mark.parametrize(("place", "break_it"), _cases())
def test_whatever_fails_the_guest_is_thawed(frozen: Frozen, place: str, break_it: Break) -> None:
    with standing(place, *frozen.arguments(*FAST)) as process:
        break_it(frozen, process)
        out, err = process.communicate(timeout=120)
    assert "Traceback" not in out + err
    if break_it is kill_with_guard:
        frozen.moves()  # the same command once more
    elif control(frozen.at_source, "status")["state"] == "complete":
        frozen.works(frozen.guest)
        if frozen.other.process.popen.poll() is None:
            frozen.other.kill()
        frozen.other = frozen.arriving("b", frozen.proxy)
        frozen.moves()
    frozen.works(frozen.other)
    control(frozen.proxy, "wait")
    frozen.prove_moved()


def test_an_agent_that_can_not_be_reached_is_named_and_nothing_has_begun(frozen: Frozen) -> None:
    nowhere = frozen.arguments(
        freeze=f"{frozen.directory / 'nowhere'},{frozen.other.directory / 'agent'}"
    )
    done = Sites.run(*nowhere, *FAST, environment=impatient(frozen.directory))
    assert done.returncode == 1
    assert "the guest agent at the source" in done.stderr
    assert "No such file or directory" in done.stderr
    assert "the guest agent at the source" in doctor(*nowhere)
    assert "answers, and can freeze" in doctor(*frozen.arguments())
    frozen.works(frozen.guest)
    frozen.moves()
    frozen.prove_moved()


def doctor(*arguments: str) -> str:
    """What `relocator doctor --move` finds of the agent."""
    argv = [sys.executable, "-m", "relocator.cli.main", "doctor", "--move", "--json", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    checks = {check["about"]: check["found"] for check in json.loads(done.stdout)["checks"]}
    return str(checks["the guest's agent"])
