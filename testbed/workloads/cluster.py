"""A PostgreSQL server and its files (a *cluster*): made, started, asked, ended, and examined.

PostgreSQL refuses to run as root: whatever touches the files runs as the user `postgres`, who may
pass through directories of root's on the way to them. The server listens on a socket beside its
files, and its little cache makes it ask the disk.
"""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from testbed.hosts.supervise import ProcessError, run, wait_until

BIN = Path("/usr/lib/postgresql/15/bin")
USER = "postgres"
SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "2MB",
    "max_connections": "20",
    "max_wal_size": "8MB",  # a checkpoint every few seconds
    "min_wal_size": "4MB",
    "wal_level": "minimal",  # nobody follows it
    "max_wal_senders": "0",
    "jit": "off",
}
#: while its files are made: no crash is in the plan
HASTY = {"fsync": "off", "autovacuum": "off", "shared_buffers": "16MB", "max_wal_size": "64MB"}
_START_S = 120
_ENVIRONMENT = ["env", "TZ=UTC", "LC_ALL=C"]
_AS_USER = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]


def _own(program: str, *arguments: object) -> list[str]:
    """A program of the server's, as its user."""
    return [*_ENVIRONMENT, *_AS_USER, str(BIN / program), *(str(one) for one in arguments)]


def client(program: str, cluster: Path, *arguments: object) -> list[str]:
    """The command line of a program that talks to the server."""
    place = ["-h", str(cluster), "-U", USER]
    return [*_ENVIRONMENT, str(BIN / program), *place, *(str(one) for one in arguments)]


def ask(cluster: Path, query: str) -> list[list[str]]:
    """A query's rows."""
    options = ("-X", "-A", "-t", "-q", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c", query)
    printed = run(client("psql", cluster, *options, USER))
    return [line.split("\t") for line in printed.splitlines()]


def make(cluster: Path) -> None:
    """A fresh cluster with checksums of its pages, in a directory that isn't there yet."""
    cluster.mkdir(mode=0o700)
    shutil.chown(cluster, USER, USER)
    how = ("--data-checksums", "--no-sync", "--no-instructions", "--wal-segsize=1")
    run(_own("initdb", *how, "--auth=trust", "--encoding=UTF8", "--locale=C", "-D", cluster))


def start(
    cluster: Path, log: Path, settings: Mapping[str, str] = SETTINGS
) -> subprocess.Popen[bytes]:
    """The server, once it takes connections."""
    chosen = [f"--{name}={value}" for name, value in settings.items()]
    command = _own("postgres", "-D", cluster, "-k", cluster, *chosen)
    with log.open("ab") as output:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )

    def ready() -> bool:
        if server.poll() is not None:
            said = log.read_text(errors="replace").strip()[-800:]
            raise ProcessError(f"postgres ended with exit status {server.returncode}: {said}")
        try:
            state = (cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return state[:1] == [str(server.pid)] and state[-1].strip() == "ready"

    try:
        wait_until(ready, "postgres to take connections", _START_S)
    except BaseException:
        server.kill()
        server.wait()
        raise
    return server


@contextmanager
def running(cluster: Path, log: Path, settings: Mapping[str, str] = SETTINGS) -> Iterator[None]:
    """A server that is shut down in order."""
    server = start(cluster, log, settings)
    try:
        yield
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def fall(server: subprocess.Popen[bytes]) -> None:
    """Ends the server as a crash would: what it had not yet written to its tables is in its log."""
    server.send_signal(signal.SIGQUIT)
    server.wait()


def errors(log: Path) -> list[str]:
    """What a server has complained of so far; a client that met it may have gone unnoticed."""
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if re.search(r" (ERROR|FATAL|PANIC): ", line)]


def copied(cluster: Path, where: Path) -> Path:
    """A copy that may be recovered and read: what is mounted read-only can't be."""
    copy = where / cluster.name
    shutil.copytree(cluster, copy, ignore=shutil.ignore_patterns("postmaster.pid", ".s.PGSQL*"))
    for path in (copy, *copy.rglob("*")):
        shutil.chown(path, USER, USER)
    return copy


def damage(cluster: Path) -> list[str]:
    """What PostgreSQL finds wrong with a server that runs: tables and indexes, by pg_amcheck."""
    command = client("pg_amcheck", cluster, "--install-missing", "--heapallindexed", USER)
    return _complaint(command)


def wrong_pages(cluster: Path) -> list[str]:
    """What is wrong with the pages of one that was shut down, by their checksums."""
    return _complaint(_own("pg_checksums", "--check", "-D", cluster))


def _complaint(command: list[str]) -> list[str]:
    try:
        run(command)
    except ProcessError as error:
        return [str(error)]
    return []
