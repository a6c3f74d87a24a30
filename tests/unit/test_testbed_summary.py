"""A run's figures from its records."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.migration.summary import distribution, latency, percentile, phase_of, phases, work

RELOCATED = {
    "memory-copy-started": 7.0,
    "destination-started": 8.0,
    "switch-started": 10.0,
    "switch-done": 10.1,
    "background-started": 18.0,
    "relocation-complete": 28.0,
    "workloads-ended": 32.0,
}


def test_phases_of_a_relocation() -> None:
    assert phases(RELOCATED) == {
        "source": (0.0, 7.0),
        "memory-copy": (7.0, 10.0),
        "on-demand": (10.1, 18.0),
        "background": (18.0, 28.0),
        "complete": (28.0, 32.0),
    }


def test_phases_without_a_memory_copy_and_without_relocation() -> None:
    times_s = {"switch-started": 10.0, "switch-done": 10.1, "workloads-ended": 32.0}
    assert phases(times_s) == {"source": (0.0, 10.0), "remote": (10.1, 32.0)}


def test_phases_of_a_disk_that_goes_before_the_guest() -> None:
    times_s = {"copy-first-started": 2.0, "memory-copy-started": 7.0, "switch-started": 10.0}
    times_s |= {"destination-started": 1.0, "switch-done": 10.1, "relocation-complete": 10.2}
    assert phases(times_s | {"workloads-ended": 32.0}) == {
        "source": (0.0, 2.0),
        "pre-copy": (2.0, 7.0),
        "memory-copy": (7.0, 10.0),
        "complete": (10.1, 32.0),
    }


def test_phases_of_a_run_that_never_moved() -> None:
    assert phases({"workloads-ended": 5.0}) == {"source": (0.0, 5.0)}


def test_an_io_held_up_by_the_switch_ends_in_the_phase_after_it() -> None:
    known = phases(RELOCATED)
    assert phase_of(10.05, known) == "memory-copy"
    assert phase_of(10.1, known) == "on-demand"
    assert phase_of(99.0, known) == "complete"
    assert phase_of(-1.0, known) == "source"


@given(st.lists(st.floats(0, 1e3), min_size=1), st.floats(0.001, 1))
def test_a_percentile_is_the_nearest_rank(values: list[float], fraction: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, fraction)
    assert sum(value <= found for value in ordered) >= math.floor(fraction * len(ordered))
    assert found in ordered


def test_distributions_by_phase_and_kind() -> None:
    found = latency(
        [(1.0, "read", 0.1), (11.0, "read", 0.3), (12.0, "write", 0.2)],
        {
            "source": (0.0, 10.0),
            "remote": (10.1, 20.0),
        },
    )
    assert found["source"]["read"] == distribution([0.1])
    assert found["remote"]["write"]["max_s"] == 0.2


def test_work_by_the_phase_it_ended_in() -> None:
    units = [("compile", 0.0, 1.0), ("compile", 9.5, 12.5)]
    found = work(units, {"source": (0.0, 10.0), "remote": (10.1, 20.0)})
    assert found["source"]["compile"]["mean_s"] == pytest.approx(1.0)
    assert found["remote"] == {"compile": {"count": 1, "mean_s": 3.0, "min_s": 3.0, "max_s": 3.0}}
