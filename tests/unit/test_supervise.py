"""Owned processes: how they end, and what is said when they end badly."""

import signal
import time
from pathlib import Path

import pytest

from testbed.hosts.supervise import ProcessError, Supervisor, run, wait_until

HELD = ["sleep", "60"]


def test_what_runs_is_ended_last_first(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        first, second = supervisor.start("first", HELD), supervisor.start("second", HELD)
        supervisor.check()
    assert first.popen.returncode == second.popen.returncode == -signal.SIGTERM
    assert supervisor.processes == []


def test_what_runs_is_ended_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Supervisor(tmp_path) as supervisor:
        process = supervisor.start("held", HELD)
        raise ZeroDivisionError
    assert process.popen.returncode == -signal.SIGTERM


def test_a_process_that_ends_early_shows_command_status_and_log(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        process = supervisor.start("early", ["sh", "-c", "echo too bad; exit 7"])
        with pytest.raises(ProcessError) as caught:
            process.wait_until(lambda: False, "never", timeout_s=20)
        supervisor.processes.clear()
    text = str(caught.value)
    assert "early ended by itself with exit status 7" in text
    assert "too bad" in text


def test_a_process_that_will_not_end_is_killed_and_reported(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        stubborn = "trap '' TERM; echo up; while :; do sleep 0.1; done"
        process = supervisor.start("stubborn", ["bash", "-c", stubborn])
        process.wait_until(lambda: "up" in process.log.read_text(), "its trap")
        with pytest.raises(ProcessError, match="still running after"):
            supervisor.stop(process, timeout_s=0.3)
    assert process.popen.returncode == -signal.SIGKILL


def test_a_failed_command_shows_what_it_printed() -> None:
    assert run(["echo", "fine"]) == "fine\n"
    with pytest.raises(ProcessError, match=r"(?s)ls /nowhere.*exit status 2.*No such file"):
        run(["ls", "/nowhere"])
    with pytest.raises(ProcessError, match="not done after"):
        run(HELD, timeout_s=0.1)


def test_waiting_has_a_limit_and_says_for_what() -> None:
    start_s = time.monotonic()
    with pytest.raises(ProcessError, match="still waiting for the moon"):
        wait_until(lambda: False, "the moon", timeout_s=0.05)
    assert time.monotonic() - start_s < 5
