"""kill -9 at random moments; `make soak` does a thousand rounds."""

from pathlib import Path

from tests.crash.kill import soak


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    copies, requests, seeded_bytes = soak(tmp_path, rounds=20, seed=2)
    assert copies > 1
    assert requests > 100
    assert seeded_bytes > 1 << 20
