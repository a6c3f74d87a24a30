"""The regression check in the lab: a slowdown of the product is caught, and called by its name."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.regress.slowdowns import SLOWDOWNS, found

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


def test_one_more_round_trip_in_a_miss_is_caught_and_nothing_else_is_blamed(
    tmp_path: Path,
) -> None:
    (slowdown,) = (one for one in SLOWDOWNS if one.name == "round-trip")
    short = replace(slowdown, parts=("misses",))
    verdicts = found(short, {}, Console(quiet=True), out=tmp_path)
    worse = {one.figure.name: one.change for one in verdicts if one.worse}
    assert worse.pop(slowdown.figure) == pytest.approx(1, abs=0.05)
    assert set(worse) == {"round trips: a miss of 64 KiB", "round trips: a write of half a block"}
