"""Heat after any time, also that of a process that was stopped meanwhile."""

import pytest

from relocator.copying.heat import HALF_LIFE_S, Heat

GROUP = 1 << 18


@pytest.mark.parametrize("days", [0.01, 1, 3.6, 4, 400, 40_000])
def test_what_was_long_ago_is_forgotten_and_what_is_now_counts(days: float) -> None:
    now_s = 1000.0
    heat = Heat(3 * GROUP, lambda: now_s)
    for _ in range(1000):
        heat.note_read(0)
    now_s += days * 86400
    heat.tick()
    heat.note_read(2 * GROUP)
    half_lives = days * 86400 / HALF_LIFE_S
    assert heat.values() == pytest.approx([1000 * 2.0 ** -min(half_lives, 1000), 0.0, 1.0])
