"""A trial stops the guest for the last blocks; whatever becomes of the trial, the guest goes on."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from relocator.errors import RelocatorError
from relocator.moving.address import parse
from relocator.moving.monitor import Monitor
from relocator.moving.reach import reaching
from relocator.moving.still import go_on
from tests.support import servers
from tests.support.machine import Machine, machine
from tests.support.relay import Relay, relay
from tests.support.servers import Server, wait_for

SIZE_BYTES = 1 << 20


@dataclass
class Stalled:
    """A trial whose guest stands still, for the source has stalled just then."""

    trial: "subprocess.Popen[str]"
    guest: Machine
    link: Relay
    target: Server

    def comes(self) -> None:
        """The source answers again."""
        self.target.process.send_signal(signal.SIGCONT)


def command(proxy: Server, directory: Path, *more: str) -> list[str]:
    argv = [sys.executable, "-m", "relocator.cli.main", "try", str(proxy.control_path)]
    return [*argv, "--directory", str(directory), *more]


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[Callable[..., object]]:
    """A trial that has stopped its guest and waits for the source; with further options."""

    @contextmanager
    def made(*options: str) -> Iterator[Stalled]:
        with (
            servers.target(tmp_path, SIZE_BYTES) as target,
            servers.proxy(tmp_path, target, "mode=standby", "refresh=off") as proxy,
            machine(tmp_path, "guest") as guest,
        ):

            def seen(said: bytes) -> None:
                if b'"stop"' in said:
                    target.process.send_signal(signal.SIGSTOP)

            with relay(tmp_path / "link", guest.qmp, seen) as link:
                argv = command(proxy, tmp_path, "--from", str(tmp_path / "link"), *options)
                with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as trial:
                    try:
                        wait_for(lambda: guest.status == "paused", "the guest to be stopped")
                        yield Stalled(trial, guest, link, target)
                    finally:
                        target.process.send_signal(signal.SIGCONT)
                        trial.kill()

    yield made


@pytest.mark.parametrize(
    ("by", "status"), [(signal.SIGHUP, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
def test_a_trial_that_is_ended_lets_its_guest_go_on(
    stalled: Callable[..., object], by: signal.Signals, status: int
) -> None:
    with stalled() as there:  # type: ignore[attr-defined]
        there.trial.send_signal(by)
        there.comes()
        wait_for(lambda: there.guest.status == "running", "the guest to go on")
        assert there.trial.wait(20) == status


def test_the_guard_lets_the_guest_go_on_though_nobody_reads_what_it_says(
    stalled: Callable[..., object],
) -> None:
    with stalled() as there:  # type: ignore[attr-defined]
        there.trial.stderr.close()
        there.trial.kill()
        wait_for(lambda: there.guest.status == "running", "the guest to go on")


def test_a_guest_stands_still_no_longer_than_it_may(stalled: Callable[..., object]) -> None:
    with stalled("--still", "1") as there:  # type: ignore[attr-defined]
        there.link.cut()  # whoever stopped it must come again
        there.link.mend()
        _, said = there.trial.communicate(timeout=30)
        assert there.trial.returncode == 1
        assert "the guest stood still for 1 s, and not all was here yet; it goes on" in said
        assert there.guest.status == "running"


def test_a_guest_that_cannot_be_told_is_said_to_stand_still(tmp_path: Path) -> None:
    with reaching() as reach:
        nobody = Monitor("the guest's QEMU", parse("--from", str(tmp_path / "none")), reach)
        with pytest.raises(RelocatorError, match=r"THE GUEST STANDS STILL.*Say `cont`"):
            go_on(nobody, 0.5)


def test_a_guest_that_somebody_else_has_stopped_stays_so(tmp_path: Path) -> None:
    with (
        servers.target(tmp_path, SIZE_BYTES) as target,
        servers.proxy(tmp_path, target, "mode=standby") as proxy,
        machine(tmp_path, "guest") as guest,
    ):
        guest.ask("stop")
        argv = command(proxy, tmp_path, "--from", str(guest.qmp))
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as trial:
            assert trial.stdout is not None
            assert ": epoch " in trial.stdout.readline()
            assert guest.status == "paused"
            trial.terminate()
        assert guest.status == "paused"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_trial_that_is_ended_lets_the_copy_go_on(tmp_path: Path, by: signal.Signals) -> None:
    """And a guest that somebody has stopped while it served stays so."""
    with (
        servers.target(tmp_path, SIZE_BYTES) as target,
        servers.proxy(tmp_path, target, "mode=standby", "refresh=0.1") as proxy,
        machine(tmp_path, "guest") as guest,
    ):
        argv = command(proxy, tmp_path, "--from", str(guest.qmp))
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as trial:
            assert trial.stdout is not None
            assert ": epoch " in trial.stdout.readline()
            assert proxy.status()["background"] == "paused"
            guest.ask("stop")
            target.connect().pwrite(b"written since", 0)
            trial.send_signal(by)
        wait_for(lambda: proxy.status()["background"] == "on", "the copy to go on")
        assert guest.status == "paused"
        proxy.control.call("activate")
        assert proxy.wait()["state"] == "complete"
        assert proxy.connect().pread(13, 0) == b"written since"


def test_under_nohup_a_trial_outlives_its_terminal(tmp_path: Path) -> None:
    with (
        servers.target(tmp_path, SIZE_BYTES) as target,
        servers.proxy(tmp_path, target, "mode=standby") as proxy,
    ):
        argv = ["nohup", *command(proxy, tmp_path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as trial:
            assert trial.stdout is not None
            assert ": epoch " in trial.stdout.readline()
            fields = Path(f"/proc/{trial.pid}/status").read_text().split()
            ignored = int(fields[fields.index("SigIgn:") + 1], 16)
            assert ignored & 1 << signal.SIGHUP - 1
            trial.terminate()
