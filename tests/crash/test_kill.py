"""kill -9 at random moments; `make soak` does a thousand rounds, and a hundred moves."""

from pathlib import Path

from tests.crash import kill, moves


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    copies, requests, seeded_bytes = kill.soak(tmp_path, rounds=20, seed=2)
    assert copies > 1
    assert requests > 100
    assert seeded_bytes > 1 << 20


def test_nothing_is_lost_or_stale_by_kill_9_in_rounds_and_at_the_switch(tmp_path: Path) -> None:
    seen = moves.soak(tmp_path, moves=1, kills=2, seed=3)
    assert seen["requests"] > 100
    assert seen["rounds"] and seen["brought"]
