"""Before a move: both ends are looked at, and what is wrong is said."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from relocator.moving.preflight import estimate, room
from tests.migrate.sites import SIZE_BYTES, Sites


def doctor(sites: Sites, *more: str) -> tuple[int, dict[str, Any], dict[str, dict[str, Any]]]:
    """`relocator doctor --move`: its status, all of its answer, and the checks by name."""
    argv = [sys.executable, "-m", "relocator.cli.main", "doctor", "--move", "--json"]
    done = subprocess.run(
        [*argv, *sites.arguments(*more)], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.stdout, done.stderr
    answer = json.loads(done.stdout)
    return done.returncode, answer, {check["about"]: check for check in answer["checks"]}


def test_a_move_that_can_begin_is_measured_and_nothing_is_changed(tmp_path: Path) -> None:
    with Sites(tmp_path, 2) as sites:
        status, answer, checks = doctor(sites)
        assert status == 0, answer
        assert answer["ok"]
        assert checks["memory"]["found"] == "16 MiB to 16 MiB"
        assert checks["disks proxy0, proxy1: room on one file system"]["ok"]
        assert checks["disk proxy1: TLS"]["found"] == "in clear"
        assert "differ by" in checks["disk proxy0: clocks"]["found"]
        span = answer["estimate"]
        assert 0 < span["least_s"] <= span["expected_s"] <= span["most_s"]
        assert sites.states() == [("complete", "standby")] * 2
        control = str(sites.proxies[0].control_path)
        argv = [sys.executable, "-m", "relocator.cli.main", "reserve", control]
        assert subprocess.run(argv, check=False).returncode == 0
        found = sites.proxies[0].control.call("status")
        assert found["unallocated_bytes"] == 0
        assert sites.image(sites.b, 0).stat().st_blocks * 512 >= SIZE_BYTES
        sites.moved()  # into the room that was reserved
        sites.destination.goes_on()
        sites.destination.kill()
        sites.prove(sites.source, sites.destination, site=sites.b)


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    with Sites(tmp_path, 2) as sites:
        sites.destination.kill()
        sites.targets[0], sites.targets[1] = sites.targets[1], sites.targets[0]
        status, answer, checks = doctor(sites)
        assert (status, answer["ok"]) == (1, False)
        assert checks["the destination's QEMU"]["ok"] is False
        assert "not from the one given as its source" in checks["disk proxy0"]["found"]
        sites.targets[1].kill()
        _, _, checks = doctor(sites)
        assert "is the plugin running" in checks["disk proxy1"]["found"]


def test_a_move_with_the_wrong_disks_does_not_begin(tmp_path: Path) -> None:
    with Sites(tmp_path, 2) as sites:
        sites.targets[0], sites.targets[1] = sites.targets[1], sites.targets[0]
        done = sites.migrate()
        assert done.returncode == 1
        assert "not from the one given as its source" in done.stderr
        assert "The guest is at the source" in done.stderr
        sites.source.goes_on()


def test_disks_share_the_room_of_a_file_system() -> None:
    def status(file_system: str | None, free_bytes: int | None, needed_bytes: int) -> Any:
        return {
            "file_system": file_system,
            "free_bytes": free_bytes,
            "unallocated_bytes": needed_bytes,
        }

    found = room(
        {
            "a": status("x", 100, 60),
            "b": status("x", 99, 60),
            "reserved": status("x", 99, 0),
            "device": status(None, None, 0),
            "c": status("y", 100, 60),
            "d": {"free_bytes": 100, "unallocated_bytes": 60},  # an older version's
        }
    )
    assert [(check.about, check.ok) for check in found] == [
        ("disk reserved: room", True),
        ("disk device: room", True),
        ("disks a, b: room on one file system", False),
        ("disk c: room", True),
        ("disk d: room", True),
    ]


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [([[8e6, 4e6]], (1.333, 1.0, 2.0)), ([[], [8e6]], (1.0, 1.0, 1.0))],
)
def test_the_time_is_told_with_its_range(rates: Any, wanted: Any) -> None:
    found = estimate(1_000_000, rates)
    assert (found.expected_s, found.least_s, found.most_s) == pytest.approx(wanted, rel=1e-3)
    assert estimate(1_000_000, [[], [0.0]]).expected_s is None
