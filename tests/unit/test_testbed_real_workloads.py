"""SQLite and git as workloads: that they work, and that their checks find what they are for."""

import io
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from testbed.workloads import git, sqlite
from testbed.workloads.base import parse_work
from testbed.workloads.suite import Settings, parse

ACCOUNTS = 50


@pytest.fixture(params=sqlite.JOURNALS)
def bank(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A small bank after five transactions."""
    path = tmp_path / "bank" / "bank.db"
    path.parent.mkdir()
    sqlite.create(path, request.param, seed=1, accounts=ACCOUNTS)
    source = random.Random(1)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for number in range(5):
            ios, work = sqlite.transaction(connection, number, source, ACCOUNTS)
            assert [one.kind for one in ios] == ["lookup"] * sqlite.LOOKUPS + ["commit"]
            assert work.kind == "sqlite"
    return path


def test_a_bank_that_lost_nothing_is_sound(bank: Path) -> None:
    assert sqlite.check(bank, 5) == []
    assert sqlite.check(bank, 4) == []  # the last one's commit had not yet returned


def test_a_lost_transaction_is_found(bank: Path) -> None:
    assert sqlite.check(bank, 6) == ["5 transactions are there, 6 were committed"]
    with closing(sqlite3.connect(bank, isolation_level=None)) as connection:
        connection.execute("delete from done where number = 2")
    assert sqlite.check(bank, 4) == ["4 transactions are noted, the last is number 4"]


def test_half_a_transaction_is_found(bank: Path) -> None:
    with closing(sqlite3.connect(bank, isolation_level=None)) as connection:
        connection.execute("update accounts set balance = balance + 1 where id = 3")
    assert sqlite.check(bank, 5) == ["50001 is in 50 accounts of 1000 each"]


def test_a_damaged_page_is_found(bank: Path) -> None:
    with bank.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(bytes(4096))
    assert sqlite.check(bank, 5)


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, list[tuple[str, str]]]:
    """A repository after three cycles, and its commits."""
    path = tmp_path / "repository"
    git.create(path, seed=1)
    work, commits = io.StringIO(), io.StringIO()
    source = random.Random(1)
    for number in range(3):
        git.cycle(path, number, source, (work, commits))
    kinds = [one.kind for one in parse_work(work.getvalue().splitlines())]
    assert kinds == ["git-checkout", "git-commit", "git-status", "git-log"] * 3
    pairs = [line.split() for line in commits.getvalue().splitlines()]
    return path, [(branch, commit) for branch, commit in pairs]


def test_a_repository_keeps_its_commits(repository: tuple[Path, list[tuple[str, str]]]) -> None:
    path, commits = repository
    assert git.check(path, commits) == []
    git.git(path, "update-ref", f"refs/heads/{commits[1][0]}", f"{commits[1][1]}~1")
    assert git.check(path, commits) == [f"{commits[1][0]} has lost commit {commits[1][1]}"]


def test_a_damaged_object_is_found(repository: tuple[Path, list[tuple[str, str]]]) -> None:
    path, commits = repository
    commit = commits[0][1]
    target = path / ".git" / "objects" / commit[:2] / commit[2:]
    target.chmod(0o600)
    target.write_bytes(target.read_bytes()[:-4] + b"damn")
    assert git.check(path, commits)


def test_equal_seeds_give_equal_commits(tmp_path: Path) -> None:
    heads = []
    for name in ("one", "two"):
        git.create(tmp_path / name, seed=7)
        heads.append(git.git(tmp_path / name, "rev-parse", "--branches"))
        shutil.rmtree(tmp_path / name)
    assert heads[0] == heads[1]


def test_the_journal_is_chosen_by_name() -> None:
    journals = [one.journal for one in parse("sqlite:delete", Settings()) if one.name == "sqlite"]  # type: ignore[attr-defined]
    assert journals == ["delete"]
