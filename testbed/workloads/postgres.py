"""The PostgreSQL workload: `python3 -m testbed.workloads.postgres CLUSTER LOGS TPS SEED`.

pgbench's bank at scale 1: 100,000 accounts, CLIENTS clients, TPS transactions a second between
them. A transaction is TPC-B's: it changes an account, a teller and the branch, and adds a row of
history, in which we also note who it is of and the how many-th. They fall due at random instants
(pgbench's --rate), as customers come; who has not been served for PATIENCE_S goes away, and
that transaction is never tried. The kernel's pages are given back every second, as in a guest that
is short of memory: accounts are on the disk.

Logs: `postgres.PID`, pgbench's own: a line for every transaction once its commit has returned. At
the end the server falls as in a crash. A copy of its files must recover, be sound (pg_amcheck,
pg_checksums), hold every such transaction and none that nobody asked for, and the sums must agree.
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import NamedTuple

from testbed.hosts.supervise import ProcessError
from testbed.hosts.supervise import run as run_command
from testbed.workloads import cluster, files
from testbed.workloads.base import Guest, Io, Log, Room, Verdict, Work, plain, python
from testbed.workloads.compile import drop_caches
from testbed.workloads.stop import Stop

CLIENTS = 4
PATIENCE_S = 2.0
DIRECTORY = "postgres"
ROOM = Room(56 * files.MIB, 1200)
DROP_EVERY_S = 1.0
# What pgbench ends with when its server has gone.
_SERVER_GONE = 2
_CLOCK = "postgres.clock"
_SCRIPT = """
\\set n :n + 1
\\set aid random(1, 100000)
\\set tid random(1, 10)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler)
    VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP, :client_id || ' ' || :n);
END;
"""


class Transaction(NamedTuple):
    """One that was committed: whose, when it ended (wall clock), and how long since it fell due
    and since it began."""

    client: int
    end_s: float
    latency_s: float
    service_s: float


def parse_log(lines: Iterable[str]) -> list[Transaction]:
    """pgbench's log, without what was never tried; latency and lag are in microseconds there."""
    done = []
    for line in lines:
        client, _, latency, _, second, micros, lag = line.split()
        if latency != "skipped":
            latency_s, lag_s = float(latency) / 1e6, float(lag) / 1e6
            end_s = int(second) + int(micros) / 1e6
            done.append(Transaction(int(client), end_s, latency_s, latency_s - lag_s))
    return done


def missing(held: Iterable[tuple[int, int]], acknowledged: Counter[int]) -> list[str]:
    """What is wrong with (client, number) of the history, given how many commits each was told of.

    Every client's are numbered from 1; it may hold one more, whose commit was under way at the end.
    """
    numbers: dict[int, list[int]] = {client: [] for client in acknowledged}
    for client, number in held:
        numbers.setdefault(client, []).append(number)
    problems = []
    for client, found in sorted(numbers.items()):
        told = acknowledged[client]
        lost = sorted(set(range(1, told + 1)) - set(found))
        if lost:
            problems.append(f"client {client}: {len(lost)} of {told} commits are lost, {lost[:9]}")
        if len(found) > len(set(found)) or any(number > told + 1 for number in found):
            problems.append(f"client {client} holds {len(found)} commits, it was told of {told}")
    return problems


def create(path: Path, log: Path) -> None:
    """A cluster with a fresh bank."""
    cluster.make(path)
    with cluster.running(path, log, cluster.SETTINGS | cluster.HASTY):
        run_command(cluster.client("pgbench", path, "-i", "-q", "-s", 1, cluster.USER))


def bench(path: Path, logs: Path, tps: float, seed: int) -> list[str]:
    """pgbench's command line, for ever."""
    script = logs / "postgres.sql"
    script.write_text(_SCRIPT)
    rate = [f"--rate={tps:g}", f"--latency-limit={PATIENCE_S * 1e3:g}"]
    who = [f"--client={CLIENTS}", "--time=1000000", f"--random-seed={seed}", "--define=n=0"]
    log = ["--log", f"--log-prefix={logs / 'postgres'}"]
    options = [*rate, *who, *log, "--no-vacuum", f"--file={script}"]
    return cluster.client("pgbench", path, *options, cluster.USER)


def run(path: Path, logs: Path, tps: float, seed: int, stop: Stop) -> None:
    """The server and its clients until told to stop."""
    (logs / _CLOCK).write_text(f"{time.time() - time.monotonic():.9f}\n")
    server_log = logs / "postgres-server.log"
    server = cluster.start(path, server_log)
    clients = Popen(bench(path, logs, tps, seed), stdin=DEVNULL)
    try:
        while not stop.requested:
            if clients.poll() is not None or server.poll() is not None:
                raise ProcessError("pgbench or its server ended by itself")
            drop_caches()
            stop.sleep_until(time.monotonic() + DROP_EVERY_S)
        if complaints := cluster.errors(server_log):
            raise ProcessError(f"postgres complained: {complaints[0]}")
    finally:
        cluster.fall(server)
        status = clients.wait()
    if status != _SERVER_GONE:
        raise ProcessError(f"pgbench ended with exit status {status}")


def check(path: Path, acknowledged: Counter[int]) -> list[str]:
    """What is wrong with the bank of a server that fell, after these commits of each client."""
    with tempfile.TemporaryDirectory() as directory:
        copy = cluster.copied(path, Path(directory))
        try:
            with cluster.running(copy, Path(directory) / "log"):
                problems = [*_sums(copy), *missing(_history(copy), acknowledged)]
                problems += cluster.damage(copy)
        except ProcessError as error:
            return [f"the database can't be read: {error}"]
        return problems + cluster.wrong_pages(copy)


def _history(path: Path) -> list[tuple[int, int]]:
    rows = cluster.ask(path, "select trim(filler) from pgbench_history")
    return [(int(client), int(number)) for client, number in (row[0].split() for row in rows)]


def _sums(path: Path) -> list[str]:
    columns = {"accounts": "abalance", "tellers": "tbalance", "branches": "bbalance"}
    parts = [f"(select sum({column}) from pgbench_{name})" for name, column in columns.items()]
    parts += ["(select coalesce(sum(delta), 0) from pgbench_history)"]
    row = cluster.ask(path, f"select {', '.join(parts)}")[0]
    shown = ", ".join(
        f"{name} {sum_}" for name, sum_ in zip((*columns, "history"), row, strict=True)
    )
    return [] if len(set(row)) == 1 else [f"the sums differ: {shown}"]


@dataclass(frozen=True, slots=True)
class Postgres:
    """The workload; its work has the parts waiting and service."""

    tps: float
    name: str = "postgres"
    room: Room = ROOM

    def prepare(self, point: Path, seed: int) -> dict[str, str]:  # noqa: ARG002
        with tempfile.TemporaryDirectory() as directory:
            create(point / DIRECTORY, Path(directory) / "log")
        return {}

    def start(self, guest: Guest) -> None:
        arguments = (guest.mount / DIRECTORY, guest.logs, self.tps, guest.seed)
        guest.supervisor.start(self.name, python("testbed.workloads.postgres", *arguments))

    def _transactions(self, logs: Path) -> list[Transaction]:
        done = []
        for path in logs.glob("postgres.[0-9]*"):
            with path.open() as lines:
                done += parse_log(lines)
        return done

    def collect(self, logs: Path) -> Log:
        wall_s = float((logs / _CLOCK).read_text())
        log = Log()
        for one in self._transactions(logs):
            end_s = one.end_s - wall_s
            log.ios.append(Io(end_s, "transaction", one.latency_s, 0))
            parts_s = (one.latency_s - one.service_s, one.service_s)
            log.work.append(Work(self.name, end_s - one.latency_s, end_s, parts_s))
        return log

    def check(self, mount: Path, logs: Path) -> Verdict:
        acknowledged = Counter(one.client for one in self._transactions(logs))
        good = f"PostgreSQL recovers, sound, with all {acknowledged.total()} acknowledged commits"
        return Verdict(check(mount / DIRECTORY, acknowledged), good)


def main(arguments: list[str]) -> int:
    path, logs, tps, seed = arguments
    run(Path(path), Path(logs), float(tps), int(seed), Stop())
    return 0


KINDS = {"postgres": plain(lambda settings: Postgres(settings.postgres_tps))}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
