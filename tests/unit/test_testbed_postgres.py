"""PostgreSQL as a workload: pgbench's log, and the commits that a history holds or lacks.

The server itself works and is examined in the lab, by tests/lab/test_workloads.py.
"""

from collections import Counter
from pathlib import Path

import pytest

from testbed.workloads import cluster, postgres
from testbed.workloads.base import Io, Work
from testbed.workloads.suite import Settings, parse

LOG = """\
1 1 80000 0 1767225601 250000 30000
0 1 skipped 0 1767225601 300000 2500000
1 2 20000 0 1767225601 500000 0
"""
TOLD = Counter({0: 2, 1: 3})
HISTORY = [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]


def test_transactions_are_read_from_when_they_fell_due(tmp_path: Path) -> None:
    (tmp_path / "postgres.123").write_text(LOG)
    (tmp_path / "postgres.clock").write_text("1767225600\n")
    log = postgres.Postgres(tps=20).collect(tmp_path)
    assert log.ios == [
        Io(1.25, "transaction", 0.08, 0),
        Io(1.5, "transaction", 0.02, 0),
    ]
    first, second = log.work
    assert first == Work("postgres", pytest.approx(1.17), 1.25, pytest.approx((0.03, 0.05)))
    assert second == Work("postgres", pytest.approx(1.48), 1.5, pytest.approx((0, 0.02)))


def test_a_history_may_hold_what_was_under_way() -> None:
    assert postgres.missing(HISTORY, TOLD) == []
    assert postgres.missing([*HISTORY, (0, 3), (2, 1)], TOLD) == []


@pytest.mark.parametrize("lost", HISTORY)
def test_every_lost_commit_is_found(lost: tuple[int, int]) -> None:
    held = [one for one in HISTORY if one != lost]
    client, number = lost
    assert postgres.missing(held, TOLD) == [
        f"client {client}: 1 of {TOLD[client]} commits are lost, [{number}]"
    ]


def test_a_lost_commit_is_not_made_up_for_by_the_one_under_way() -> None:
    held = [(0, 2), (0, 3), *HISTORY[2:]]
    assert postgres.missing(held, TOLD) == ["client 0: 1 of 2 commits are lost, [1]"]


@pytest.mark.parametrize("extra", [(0, 2), (0, 4), (3, 2)])
def test_a_commit_that_nobody_asked_for_is_found(extra: tuple[int, int]) -> None:
    (problem,) = postgres.missing([*HISTORY, extra], TOLD)
    assert problem.startswith(f"client {extra[0]} holds")


def test_what_a_server_complained_of_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    well = "2026-01-01 00:00:01 UTC [7] LOG:  checkpoint starting: wal\n"
    log.write_text(well)
    assert cluster.errors(log) == []
    broken = "2026-01-01 00:00:02 UTC [9] ERROR:  could not read block 3: Input/output error"
    log.write_text(f"{well}{broken}\n{well}")
    assert cluster.errors(log) == [broken]


def test_nothing_can_be_chosen_behind_its_name() -> None:
    assert [one.name for one in parse("postgres", Settings())] == ["ledger", "postgres"]
    with pytest.raises(ValueError, match="nothing can be chosen"):
        parse("postgres:16", Settings())
