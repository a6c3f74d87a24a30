"""What moved, and by more than what moves it without a reason. Pure.

Nothing is random here: the same code gives the same figures. But a change that changes nothing, a
comment, shifts when things happen by some microseconds, and with that which request meets which.
How far that moves a figure was measured (noise.py). Three times that, and at least `LEAST`, is
*noticed*. A figure that gets worse by more than `PROMISED` fails the check, but never by less than
what is noticed: where noise is large, that is its limit. Less than the limit adds up: the baseline
stays, until somebody accepts another. A request takes whole round trips: `TRIPS_LIMIT` of one is
the limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.regress.figures import FIGURES, TRIPS, Figure

PROMISED = 0.02
LEAST = 0.005
NOISES = 3.0
TRIPS_LIMIT = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure before and after. `change`, `noticed` and `limit` are fractions of what it was
    before, or numbers of round trips. `before` is None of a figure that there was not."""

    figure: Figure
    before: float | None
    after: float
    change: float
    noticed: float
    limit: float

    @property
    def worse(self) -> bool:
        return self.change > self.limit

    @property
    def word(self) -> str:
        """`worse`: the check fails; `more` or `less`: it moved, within the limit or for the better;
        or nothing."""
        if self.worse:
            return "worse"
        if abs(self.change) <= self.noticed:
            return ""
        return "more" if self.change > 0 else "less"


def change(figure: Figure, before: float, after: float) -> float:
    """By how much it is more than before, as the figure's kind is compared."""
    if figure.unit == TRIPS:
        return after - before
    return after / before - 1 if before else 0.0


def limits(figure: Figure, noise: Mapping[str, float]) -> tuple[float, float]:
    """What is noticed, and what a figure may be worse by; `noise` is the most that an irrelevant
    change moved each figure by."""
    if figure.unit == TRIPS:
        return TRIPS_LIMIT, TRIPS_LIMIT
    noticed = max(LEAST, NOISES * noise.get(figure.name, 0.0))
    return noticed, max(PROMISED, noticed)


def judge(
    before: Mapping[str, float], after: Mapping[str, float], noise: Mapping[str, float]
) -> list[Verdict]:
    """A verdict on each figure that was measured, in their order."""
    found = []
    for figure in FIGURES:
        if figure.name in after:
            was, now = before.get(figure.name), after[figure.name]
            moved_by = 0.0 if was is None else change(figure, was, now)
            found.append(Verdict(figure, was, now, moved_by, *limits(figure, noise)))
    return found
