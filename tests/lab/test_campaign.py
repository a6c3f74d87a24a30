"""Fault campaigns, in small: `make campaign` runs as many seeds as one likes.

Two boots at once, each with half of the seeds. A run that fails can be repeated: both begin with
the same world, each the other's disturbance, and come to the same notes of it, to the byte.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.campaign import runfile
from tests.campaign.boots import Result, boot
from tests.campaign.world import world

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]
SEEDS = tuple(range(1, 21))
HALVES = SEEDS[::2], (SEEDS[0], *SEEDS[1::2])


@pytest.fixture(scope="module")
def halves() -> list[list[Result]]:
    """The results of each boot."""
    with ThreadPoolExecutor(len(HALVES)) as pool:
        return list(pool.map(lambda seeds: boot([world(seed) for seed in seeds]), HALVES))


def test_nothing_is_lost_whatever_fails(halves: list[list[Result]]) -> None:
    results = [result for half in halves for result in half]
    assert {result["seed"] for result in results} == set(SEEDS)
    for result in results:
        assert result["ok"], (result["seed"], result["wrong"])
        kinds = {kind for _, kind, _ in result["notes"]}
        assert {"event", "authority", "complete", "compared"} <= kinds
        assert result["writes"] > 20


def test_a_run_is_repeated_to_the_byte(halves: list[list[Result]]) -> None:
    first, again = (half[0] for half in halves)
    assert first["seed"] == again["seed"]
    assert runfile.digest(first) == runfile.digest(again)


#: known bugs that are put back, and seeds (of the first 84) whose schedules touch them. What
#: happens exactly when depends on all that runs in the lab, so one of them has to find it.
TOUCHED_BY = {
    "no-fdatasync": (10, 38),
    "bit-before-data": (2,),
    "seal-not-durable": (33, 18),
    "unseal-while-active": (27, 16),
    "target-threads": (44,),
    "outside-unnoticed": (51,),
    "any-disk": (84,),
}


@pytest.mark.matrix
def test_known_bugs_that_are_put_back_are_found() -> None:
    """Else all of this would prove nothing."""
    touched = [(bug, seed) for bug, seeds in TOUCHED_BY.items() for seed in seeds]
    worlds = [replace(world(seed), planted=bug) for bug, seed in touched]
    results = zip(worlds, boot(worlds), strict=True)
    found = {one.planted for one, told in results if not told["ok"] and not _died_of_it(told)}
    assert found == set(TOUCHED_BY)


def _died_of_it(told: Result) -> bool:
    """Whether a thread of a server ended by an error, and so by the planting."""
    return any("has died" in line["text"] for _, kind, line in told["notes"] if kind == "log")
