"""Power failure, at some points of a recording; `make power` tries all of a longer one."""

import os
import shutil
from pathlib import Path

import pytest

from tests.crash.power import Replay, record

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.geteuid() != 0
        or shutil.which("mount") is None
        or not Path("/dev/loop-control").exists(),
        reason="mounting what a power failure leaves needs root and loop devices",
    ),
]
POINTS = 120


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("power") / "recording"
    record(out, "ext4", size_mib=4, requests=400, seed=7)
    return out


def test_a_power_failure_loses_no_flushed_write_and_shows_no_stale_block(
    recording: Path, tmp_path: Path
) -> None:
    replay = Replay(recording, tmp_path)
    tally = replay.run(replay.points(POINTS, seed=7))
    assert tally.wrong == []
    assert tally.points == POINTS
    assert tally.lossy > POINTS // 3
    assert tally.complete and tally.present_blocks and tally.absent_blocks
    assert tally.standing_by > POINTS // 10
    assert all(replay.facts[what] > 0 for what in ("seeded_bytes", "rounds", "brought_bytes"))


def test_a_live_map_believed_after_a_power_failure_is_found_out(
    recording: Path, tmp_path: Path
) -> None:
    """The control: without the rule that a reboot voids the live map, the checks do fail."""
    replay = Replay(recording, tmp_path, believe_live=True)
    assert replay.run(replay.points(POINTS // 3, seed=8)).wrong
