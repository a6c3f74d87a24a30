"""A film becomes a moving picture that shows what was seen."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.publishing import animation

CELLS = 120


def film() -> dict[str, Any]:
    """Five pictures, a fifth more of the disk in each; the link is cut in the middle."""
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    pictures = [
        {
            "at_s": number * 0.1,
            "present": [1.0 if cell < share * CELLS else 0.0 for cell in range(CELLS)],
            "dirty": [1.0 if cell == 0 and number else 0.0 for cell in range(CELLS)],
        }
        for number, share in enumerate(shares)
    ]
    events = [{"at_s": 0.15, "cut": True}, {"at_s": 0.25, "cut": False}]
    latencies_s = {"read": [(0.0, 0.02), (0.2, 0.001)], "write": [(0.1, 0.0005)]}
    link = {"rtt_s": 0.02, "rate_bits_per_s": 2e7}
    return {"link": link, "pictures": pictures, "events": events, "latencies_s": latencies_s}


def test_each_part_has_the_colour_of_its_state() -> None:
    first, middle = (animation.colours(film()["pictures"][number]) for number in (0, 2))
    assert middle.shape == (CELLS // animation.COLUMNS, animation.COLUMNS, 3)
    assert (first == animation.ABSENT).all()
    assert tuple(middle[0, 0]) == animation.WRITTEN
    assert (middle[0, 1:] == animation.PRESENT).all()
    assert (middle[1] == animation.ABSENT).all()


def test_the_caption_says_what_one_sees() -> None:
    one = film()
    said = [animation.caption(one, picture) for picture in one["pictures"]]
    assert "25% of its disk is here" in said[1]
    assert said[2].startswith("the link is cut")
    assert said[4] == "all of it is here: the source may be switched off"


def test_the_picture_moves_at_the_film_s_own_speed(tmp_path: Path) -> None:
    (tmp_path / "film.json").write_text(json.dumps(film()))
    assert animation.main([str(tmp_path / "film.json"), str(tmp_path / "film.gif")]) == 0
    with Image.open(tmp_path / "film.gif") as moving:
        assert moving.n_frames == 3
        shown_ms = []
        for number in range(moving.n_frames):
            moving.seek(number)
            shown_ms.append(moving.info["duration"])
    assert shown_ms == [200, 200, animation.LAST_MS]


def test_a_file_that_is_no_film_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "film.json").write_text("{}")
    assert animation.main([str(tmp_path / "film.json"), str(tmp_path / "film.gif")]) == 1
    assert "film.json: KeyError('pictures')" in capsys.readouterr().err
