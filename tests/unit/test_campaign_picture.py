"""The picture of a campaign's run."""

from pathlib import Path

from tests.campaign.picture import draw, spans
from tests.campaign.world import world

NOTES = [
    [0.2, "status", {"at": "B", "is_": None}],
    [0.4, "status", {"at": "B", "is_": {"state": "standby"}}],
    [0.6, "status", {"at": "A", "is_": {"state": "complete"}}],
    [0.8, "status", {"at": "B", "is_": {"state": "standby"}}],
    [1.0, "status", {"at": "B", "is_": {"state": "active"}}],
    [1.1, "authority", {"at": "B"}],
]


def test_what_holds_holds_until_something_else_does() -> None:
    assert spans(NOTES, "status", "is_", "B", 2.0) == [
        (0.2, 0.4, "no answer"),
        (0.4, 1.0, "standby"),
        (1.0, 2.0, "active"),
    ]
    assert spans(NOTES, "authority", "at", "", 2.0) == [(1.1, 2.0, "B")]


def test_every_kind_of_event_can_be_drawn(tmp_path: Path) -> None:
    events = tuple(event for seed in range(1, 60) for event in world(seed).events)
    wrong = [[3.0, "wrong", {"text": "x"}], [3.1, "ended", {"who": "A"}]]
    result = {"seconds": 9.0, "ok": False, "wrong": ["x"], "notes": NOTES + wrong}
    draw(world(1).with_events(events), result, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
