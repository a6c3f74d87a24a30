"""The SQLite workload: `python3 -m testbed.workloads.sqlite DATABASE LOGS TPS SEED`.

A bank of ACCOUNTS accounts. A transaction looks some up, moves money between two, and notes its
number; then it is committed, with synchronous=FULL. It starts 1/TPS s after the one before, or at
once where that took longer. SQLite's cache is small, and the kernel's pages of the database are
given back before each, as in a guest that is short of memory: look-ups reach the disk.

Logs: `sqlite.ios`, a `lookup` for every account looked up and a `commit` for every commit;
`sqlite.work`, a line for every transaction once its commit has returned. At the end the file must
be sound, no such transaction may be missing, and the money must be what it was.
"""

import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from testbed.workloads import files
from testbed.workloads.base import (
    Guest,
    Io,
    Log,
    Room,
    Settings,
    Verdict,
    Work,
    io_line,
    parse_ios,
    parse_work,
    python,
    work_line,
)
from testbed.workloads.stop import Stop

ACCOUNTS = 4000
NOTE_BYTES = 900
OPENING_BALANCE = 1000
LOOKUPS = 4
CACHE_KIB = 64
CHECKPOINT_PAGES = 100
JOURNALS = ("wal", "delete")
DATABASE = "bank/bank.db"
ROOM = Room(12 * files.MIB, 8)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma synchronous=full")
    connection.execute(f"pragma cache_size=-{CACHE_KIB}")
    connection.execute(f"pragma wal_autocheckpoint={CHECKPOINT_PAGES}")
    return connection


def create(path: Path, journal: str, seed: int, accounts: int = ACCOUNTS) -> None:
    """A fresh bank."""
    source = random.Random(seed)
    with closing(_connect(path)) as bank:
        bank.execute("pragma page_size=4096")
        bank.execute(f"pragma journal_mode={journal}")
        bank.execute("begin")
        bank.execute("create table accounts (id integer primary key, balance, note blob)")
        bank.execute("create table done (number integer primary key)")
        rows = ((one, OPENING_BALANCE, source.randbytes(NOTE_BYTES)) for one in range(accounts))
        bank.executemany("insert into accounts values (?, ?, ?)", rows)
        bank.execute("commit")


def transaction(
    bank: sqlite3.Connection, number: int, source: random.Random, accounts: int = ACCOUNTS
) -> tuple[list[Io], Work]:
    """One transaction; returns what it took."""
    ios = []
    began_s = time.monotonic()
    bank.execute("begin immediate")
    for account in source.sample(range(accounts), LOOKUPS):
        start_s = time.monotonic()
        bank.execute("select balance, note from accounts where id = ?", (account,)).fetchone()
        end_s = time.monotonic()
        ios.append(Io(end_s, "lookup", end_s - start_s, 0))
    payer, payee = source.sample(range(accounts), 2)
    for account, amount in ((payer, -1), (payee, 1)):
        change = "update accounts set balance = balance + ?, note = ? where id = ?"
        bank.execute(change, (amount, source.randbytes(NOTE_BYTES), account))
    bank.execute("insert into done values (?)", (number,))
    start_s = time.monotonic()
    bank.execute("commit")
    end_s = time.monotonic()
    ios.append(Io(end_s, "commit", end_s - start_s, 0))
    return ios, Work("sqlite", began_s, end_s)


def run(path: Path, logs: tuple[TextIO, TextIO], tps: float, seed: int, stop: Stop) -> None:
    """Transactions until told to stop."""
    source = random.Random(seed)
    ios_log, work_log = logs
    # Closing any file of the database's would drop SQLite's locks on it: this one goes last.
    descriptor = os.open(path, os.O_RDONLY)
    next_s = time.monotonic()
    number = 0
    with closing(_connect(path)) as bank:
        while not stop.requested:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            ios, work = transaction(bank, number, source)
            ios_log.writelines(io_line(io) for io in ios)
            work_log.write(work_line(work))
            number += 1
            next_s = max(next_s + 1 / tps, work.end_s)
            stop.sleep_until(next_s)
    os.close(descriptor)


def check(path: Path, committed: int) -> list[str]:
    """What is wrong with a bank that must hold `committed` transactions, or one more."""
    with tempfile.TemporaryDirectory() as copy:
        for part in path.parent.iterdir():  # what is mounted read-only can't be recovered in place
            shutil.copy(part, copy)
        try:
            with closing(sqlite3.connect(Path(copy) / path.name)) as bank:
                return _problems(bank, committed)
        except sqlite3.DatabaseError as error:
            return [f"the database can't be read: {error}"]


def _problems(bank: sqlite3.Connection, committed: int) -> list[str]:
    problems = [row[0] for row in bank.execute("pragma integrity_check") if row[0] != "ok"]
    (held, newest) = bank.execute("select count(*), max(number) from done").fetchone()
    newest = -1 if newest is None else newest
    if held != newest + 1:
        problems.append(f"{held} transactions are noted, the last is number {newest}")
    if not committed <= held <= committed + 1:
        problems.append(f"{held} transactions are there, {committed} were committed")
    (money, accounts) = bank.execute("select sum(balance), count(*) from accounts").fetchone()
    if money != accounts * OPENING_BALANCE:
        problems.append(f"{money} is in {accounts} accounts of {OPENING_BALANCE} each")
    return problems


@dataclass(frozen=True, slots=True)
class Sqlite:
    """The workload; `journal` is `wal` or `delete`."""

    tps: float
    journal: str = "wal"
    name: str = "sqlite"
    room: Room = ROOM

    def prepare(self, point: Path, seed: int) -> dict[str, str]:
        path = point / DATABASE
        path.parent.mkdir()
        create(path, self.journal, seed)
        return {}

    def start(self, guest: Guest) -> None:
        arguments = (guest.mount / DATABASE, guest.logs, self.tps, guest.seed)
        guest.supervisor.start(self.name, python("testbed.workloads.sqlite", *arguments))

    def collect(self, logs: Path) -> Log:
        with (logs / "sqlite.ios").open() as ios, (logs / "sqlite.work").open() as work:
            return Log(parse_ios(ios), parse_work(work))

    def check(self, mount: Path, logs: Path) -> Verdict:
        committed = len(self.collect(logs).work)
        good = f"the database is sound and holds all {committed} committed transactions"
        return Verdict(check(mount / DATABASE, committed), good)


def main(arguments: list[str]) -> int:
    path, logs, tps, seed = arguments
    with (
        (Path(logs) / "sqlite.ios").open("w", buffering=1) as ios,
        (Path(logs) / "sqlite.work").open("w", buffering=1) as work,
    ):
        run(Path(path), (ios, work), float(tps), int(seed), Stop())
    return 0


def _make(argument: str, settings: Settings) -> Sqlite:
    if argument not in ("", *JOURNALS):
        raise ValueError(f"its journal is one of {', '.join(JOURNALS)}")
    return Sqlite(settings.sqlite_tps, argument or JOURNALS[0])


KINDS = {"sqlite": _make}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
