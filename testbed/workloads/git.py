"""The git workload: `python3 -m testbed.workloads.git REPOSITORY LOGS PERIOD_S SEED`.

One cycle, with the page cache dropped: check out another branch, change a few files and commit
them, ask for the status (which must be clean) and the log. Cycles start PERIOD_S apart, or one
after the other where they take longer. Objects, references and the index are synced (core.fsync),
and nothing is packed behind our back (gc.auto=0).

Logs: `git.work`, a line for every command; `git.commits`, every commit once it was made. At the end
`git fsck` must be content and every commit on its branch.
"""

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from testbed.workloads import files
from testbed.workloads.base import (
    Guest,
    Log,
    Room,
    Verdict,
    Work,
    parse_work,
    plain,
    python,
    work_line,
)
from testbed.workloads.compile import drop_caches
from testbed.workloads.stop import Stop

BRANCHES = 4
DIRECTORIES = 8
FILES_EACH = 12
CHANGED = 5
REPOSITORY = "repository"
ROOM = Room(24 * files.MIB, 6000)  # some 300 cycles
_CONFIG = {"gc.auto": "0", "maintenance.auto": "false", "core.fsync": "all"}
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
    **{f"GIT_{who}_NAME": "A Guest" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "guest@example.org" for who in ("AUTHOR", "COMMITTER")},
    # A fixed date: equal seeds give equal commits.
    **{f"GIT_{who}_DATE": "1700000000 +0000" for who in ("AUTHOR", "COMMITTER")},
}


def git(repository: Path, *arguments: str) -> str:
    """Runs git and returns what it printed; a failure is raised with what it said."""
    done = subprocess.run(
        ["git", "-C", str(repository), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | _ENVIRONMENT,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip()[-500:]
        raise RuntimeError(f"git {' '.join(arguments)}: exit status {done.returncode}: {said}")
    return done.stdout


def _text(source: random.Random) -> str:
    """A file of numbered lines, 2 to 8 KiB, that packs badly."""
    lines = source.randrange(40, 160)
    return "".join(f"{number:4} {source.randbytes(24).hex()}\n" for number in range(lines))


def _names() -> list[str]:
    return [f"part{one}/file{two}" for one in range(DIRECTORIES) for two in range(FILES_EACH)]


def _change(repository: Path, names: list[str], source: random.Random) -> None:
    for name in names:
        path = repository / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(_text(source))


def create(repository: Path, seed: int) -> None:
    """A fresh repository: a commit of all files, and branches that differ in a third of them."""
    source = random.Random(seed)
    repository.mkdir()
    git(repository, "init", "--quiet", "--initial-branch=branch0")
    for name, value in _CONFIG.items():
        git(repository, "config", name, value)
    names = _names()
    _change(repository, names, source)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message=all files")
    for number in range(1, BRANCHES):
        git(repository, "checkout", "--quiet", "-b", f"branch{number}", "branch0")
        _change(repository, source.sample(names, len(names) // 3), source)
        git(repository, "commit", "--quiet", "--all", f"--message=branch {number}")


def cycle(
    repository: Path, number: int, source: random.Random, logs: tuple[TextIO, TextIO]
) -> None:
    """One cycle; logs every command that has returned."""
    work_log, commits_log = logs

    def timed(kind: str, *arguments: str) -> str:
        start_s = time.monotonic()
        printed = git(repository, *arguments)
        work_log.write(work_line(Work(f"git-{kind}", start_s, time.monotonic())))
        return printed

    branch = f"branch{number % BRANCHES}"
    timed("checkout", "checkout", "--quiet", branch)
    _change(repository, source.sample(_names(), CHANGED), source)
    timed("commit", "commit", "--quiet", "--all", f"--message=cycle {number}")
    commits_log.write(f"{branch} {git(repository, 'rev-parse', 'HEAD')}")
    status = timed("status", "status", "--porcelain")
    if status:
        raise RuntimeError(f"{branch} is not clean after a commit: {status!r}")
    timed("log", "log", "--stat", "--max-count=10")


def check(repository: Path, commits: list[tuple[str, str]]) -> list[str]:
    """What is wrong with a repository that must hold (branch, commit)."""
    try:
        git(repository, "fsck", "--full", "--strict", "--no-progress", "--no-dangling")
        problems = []
        for branch in sorted({branch for branch, _ in commits}):
            held = set(git(repository, "rev-list", branch).split())
            lost = [commit for where, commit in commits if where == branch and commit not in held]
            problems += [f"{branch} has lost commit {commit}" for commit in lost]
        return problems
    except RuntimeError as error:
        return [str(error)]


@dataclass(frozen=True, slots=True)
class Git:
    """The workload; its work is of the kinds git-checkout, git-commit, git-status and git-log."""

    period_s: float
    name: str = "git"
    room: Room = ROOM

    def prepare(self, point: Path, seed: int) -> dict[str, str]:
        create(point / REPOSITORY, seed)
        return {}

    def start(self, guest: Guest) -> None:
        arguments = (guest.mount / REPOSITORY, guest.logs, self.period_s, guest.seed)
        guest.supervisor.start(self.name, python("testbed.workloads.git", *arguments))

    def collect(self, logs: Path) -> Log:
        with (logs / "git.work").open() as work:
            return Log(work=parse_work(work))

    def check(self, mount: Path, logs: Path) -> Verdict:
        commits = []
        for line in (logs / "git.commits").read_text().splitlines():
            branch, commit = line.split()
            commits.append((branch, commit))
        good = f"git fsck finds no fault, and all {len(commits)} commits are there"
        return Verdict(check(mount / REPOSITORY, commits), good)


def main(arguments: list[str]) -> int:
    repository, logs, period_s, seed = arguments
    stop = Stop()
    source = random.Random(int(seed))
    number = 1
    with (
        (Path(logs) / "git.work").open("w", buffering=1) as work,
        (Path(logs) / "git.commits").open("w", buffering=1) as commits,
    ):
        while not stop.requested:
            drop_caches()
            start_s = time.monotonic()
            cycle(Path(repository), number, source, (work, commits))
            number += 1
            stop.sleep_until(start_s + float(period_s))
    return 0


KINDS = {"git": plain(lambda settings: Git(settings.git_period_s))}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
