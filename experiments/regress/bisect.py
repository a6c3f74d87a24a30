"""Which commit made it worse: `git bisect run` in a worktree of its own.

At each commit that git tries, the commit's product is measured by the test bed as it stands *here*,
and compared with GOOD's. Only commits that touch the product are tried. What was measured is kept
(measure.py), so a bisection that was interrupted and is started again goes on where it was: it
walks the same commits, and those that it knows take no time. A commit that can't be measured is
skipped.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.regress import baseline, judge, measure, report, tree
from experiments.regress.figures import FIGURES, values
from experiments.regress.judge import Verdict
from experiments.regress.tree import RegressError
from testbed.lab.payload import PROJECT

GOOD, BAD, SKIP = 0, 1, 125
STOP = 128  # git bisect run ends at this status and above
PRODUCT = "relocator"


def run(good: str, bad: str, figure: str | None, console: Console, **how: Any) -> int:
    """Prints the first commit that is worse than `good`; `how` is for `measure`.

    Raises:
        RegressError: `bad` is no worse, git failed, or a parameter is wrong.
    """
    parts = _parts(figure)
    good, bad = tree.commit_of(good), tree.commit_of(bad)
    found = [one for one in _compared(good, bad, parts, console, **how) if _counts(one, figure)]
    if not (worse := [one for one in found if one.worse]):
        raise RegressError(f"{bad[:12]} is not worse than {good[:12]}: {report.headline(found)}")
    console.print(report.headline(worse), highlight=False)
    figure = figure or max(worse, key=lambda one: one.change / one.limit).figure.name
    out = Path(how["out"]).resolve()
    worktree = out / "bisect"
    _make(worktree, bad)
    try:
        _git(worktree, "bisect", "start", "--no-checkout", bad, good, "--", PRODUCT)
        step = [sys.executable, "-m", "experiments.regress", "--out", str(out)]
        step += ["--at-once", str(how["at_once"] or os.cpu_count() or 1)]
        command = [*step, "bisect-step", good, "--figure", figure]
        told = {**os.environ, "PYTHONPATH": str(PROJECT)}
        bisection = ["git", "bisect", "run", *command]
        done = subprocess.run(bisection, cwd=worktree, env=told, check=False)
        if done.returncode != 0:
            raise RegressError(
                "git bisect run didn't end well; the same command again goes on from here"
            )
        first = _git(worktree, "rev-parse", "refs/bisect/bad").strip()
        console.print(_git(worktree, "show", "--stat", "--format=%h %an %ad%n    %s", first))
        return 0
    finally:
        _remove(worktree)


def step(good: str, figure: str | None, console: Console, **how: Any) -> int:
    """The status that `git bisect run` asks for, of the commit that it is at."""
    here = subprocess.run(
        ["git", "rev-parse", "--verify", "BISECT_HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        verdicts = _compared(good, here, _parts(figure), console, **how)
    except KeyboardInterrupt:
        return STOP + signal.SIGINT
    except RegressError as error:
        console.print(f"{here[:12]} can't be measured: {error}", highlight=False)
        return SKIP
    (verdict,) = (one for one in verdicts if one.figure.name == figure)
    word = "worse" if verdict.worse else "good"
    console.print(f"{here[:12]} {word}: {figure} {report.moved(verdict)}", highlight=False)
    return BAD if verdict.worse else GOOD


def _parts(figure: str | None) -> list[str]:
    """What must be measured to tell, whole boots of it; nothing is everything."""
    parts = {one.part for one in FIGURES if one.name == figure}
    return [part for boot in measure.BOOTS if parts & set(boot) for part in boot]


def _counts(verdict: Verdict, figure: str | None) -> bool:
    return figure in (None, verdict.figure.name)


def _compared(
    good: str, other: str, parts: list[str], console: Console, **how: Any
) -> list[Verdict]:
    found = []
    for commit in (good, other):
        with tree.of_commit(commit) as code:
            found.append(values(measure.measure(code, console, parts=parts, **how)))
    return judge.judge(*found, baseline.noise())


def _make(worktree: Path, commit: str) -> None:
    _remove(worktree)
    worktree.parent.mkdir(parents=True, exist_ok=True)
    _git(PROJECT, "worktree", "add", "--detach", "--no-checkout", str(worktree), commit)


def _remove(worktree: Path) -> None:
    with suppress(RegressError):
        _git(PROJECT, "worktree", "remove", "--force", str(worktree))


def _git(directory: Path, *arguments: str) -> str:
    return tree.git(*arguments, directory=directory).decode()
