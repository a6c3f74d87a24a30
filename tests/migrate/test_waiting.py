"""The operator decides when: copied ahead, kept in step, and begun with a word."""

import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from relocator.client import Client
from relocator.errors import ConfigError, RelocatorError
from relocator.moving.ahead import parse_window
from tests.migrate.sites import Sites, command, wait_for
from tests.migrate.way import Way
from tests.support.command import impatient


@pytest.mark.parametrize(
    ("window", "clock", "within"),
    [
        ("02:00-04:00", "02:00", True),
        ("02:00-04:00", "03:59", True),
        ("02:00-04:00", "04:00", False),
        ("22:30-01:00", "23:00", True),
        ("22:30-01:00", "00:59", True),
        ("22:30-01:00", "12:00", False),
    ],
)
def test_a_window_may_reach_past_midnight(window: str, clock: str, within: bool) -> None:
    now = datetime.strptime(f"2026-01-01 {clock}", "%Y-%m-%d %H:%M")
    assert parse_window("--window", window).holds(now) is within


@pytest.mark.parametrize("text", ["2-4", "02:00", "02:00-25:00", "02:00-02:00", "a-b-c"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--window={text}: "):
        parse_window("--window", text)


def test_a_held_move_keeps_in_step_and_begins_with_the_word(tmp_path: Path) -> None:
    word = tmp_path / "word"
    with Sites(tmp_path, 2) as sites:
        with subprocess.Popen(
            command(*sites.arguments("--hold", str(word), "--json")),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                wait_for(lambda: "in step" in waits_for(word), "the copy ahead")
                epochs = [epoch(sites, at) for at in sites.disks]
                sites.source.goes_on(70)  # every place anew
                wait_for(
                    lambda: all(epoch(sites, at) > epochs[at] for at in sites.disks),
                    "the next step",
                )
                wait_for(lambda: "in step" in waits_for(word), "it to be copied")
                assert process.poll() is None
                assert subprocess.run(command("--go", str(word)), check=False).returncode == 0
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 0, out + err
        sites.destination.goes_on()
        sites.destination.kill()
        sites.prove(sites.source, sites.destination, site=sites.b)


def test_a_word_that_nobody_waits_for_is_not_called_a_plugins(tmp_path: Path) -> None:
    go = command("--go", str(tmp_path / "nobody"))
    done = subprocess.run(go, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"--go={tmp_path}/nobody: No such file or directory; is `relocator mig" in done.stderr
    assert "plugin" not in done.stderr


def waits_for(word: Path) -> str:
    try:
        return str(Client(word).call("status")["waits_for"])
    except RelocatorError:
        return ""


def epoch(sites: Sites, at: int) -> int:
    return int(sites.targets[at].control.call("identify")["epoch"])


def test_a_move_that_waits_can_be_given_up_and_nothing_has_changed(tmp_path: Path) -> None:
    with Sites(tmp_path, 1) as sites:
        closed = "00:00-00:01" if datetime.now().hour else "12:00-12:01"
        with subprocess.Popen(
            command(*sites.arguments("--window", closed)), stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "waiting for the window" in line:
                    break
            process.terminate()
            assert "The guest is at the source" in process.stderr.read()
        assert process.returncode == 130
        assert sites.states() == [("complete", "standby")]
        sites.moved("--pre-seed")
        sites.destination.goes_on()
        assert sites.proxies[0].control.call("status")["dropped_blocks"] <= 64
        sites.destination.kill()
        sites.prove(sites.source, sites.destination, site=sites.b)


def test_what_a_qemu_sent_elsewhere_meanwhile_is_not_taken_for_the_guest(way: Way) -> None:
    """As a snapshot, or a migration to a file."""
    word = way.directory / "word"
    process = way.begin("--hold", str(word), env=impatient(way.directory))
    wait_for(word.exists, "the move to wait")
    way.source.tell("MIGRATION", status="completed")

    def leave() -> None:
        way.source.status, way.source.migration = "finish-migrate", "device"
        way.destination.status = "running"
        way.destination.tell("RESUME")

    way.source.before["migrate-continue"] = leave
    assert way.run("--go", str(word)).returncode == 0
    wait_for(lambda: way.source.migration == "active", "memory to be sent")
    way.source.stand_still()
    wait_for(lambda: way.proxy.status()["seal_confirmed"], "the seal")
    time.sleep(1)  # the source's QEMU may still decide that its migration has failed
    assert way.disk == ("sealed", "activating")
    way.source.status, way.source.migration = "running", "failed"
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "QEMU at the source took the guest back" in said
    assert way.disk == ("complete", "standby")
