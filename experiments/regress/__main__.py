"""Does this code do worse than the committed baseline?

    check             measure, compare, print what moved; status 1 if something is worse (default)
    accept            show what moved, and make it the baseline
    noise [NAME...]   measure what changes that change nothing move: the limits
    prove [NAME...]   slow a copy down on purpose: each slowdown must be caught and named
    bisect GOOD BAD   which commit made it worse

What was measured is kept in OUT/measured and not measured again unless --again. docs/regress.md.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import experiments
from experiments.regress import baseline, bisect, judge, measure, noise, report, tree
from experiments.regress.baseline import Baseline
from experiments.regress.figures import FIGURES, values
from experiments.regress.judge import Verdict
from experiments.regress.slowdowns import SLOWDOWNS, found
from experiments.regress.tree import RegressError
from testbed import ending
from testbed.lab.image import LabError

Options = argparse.Namespace
WORSE = 1
LOG_WIDTH = 120  # where nobody says how wide it is


def _how(options: Options) -> dict[str, Any]:
    return {"out": options.out, "again": options.again, "at_once": options.at_once}


def _here(options: Options, console: Console) -> dict[str, float]:
    """The figures of the product as it stands on the disk."""
    with tree.with_product(noise.PRODUCT) as code:
        return values(measure.measure(code, console, **_how(options)))


def _compare(options: Options, console: Console) -> tuple[list[Verdict], dict[str, float]]:
    kept = baseline.load()
    here = _here(options, console)
    before = baseline.comparable(kept, console, **_how(options))
    verdicts = judge.judge(before, here, baseline.noise())
    _show(verdicts, kept.commit, options.out, console)
    return verdicts, here


def _show(verdicts: Sequence[Verdict], of: str, out: Path, console: Console) -> None:
    from experiments.regress import plot

    console.print(report.table(verdicts))
    for hint in report.hints(verdicts):
        console.print(hint, highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.md").write_text(report.summary(verdicts, of))
    (out / "regress.png").write_bytes(plot.figure(verdicts, of))
    console.print(f"written: {out / 'summary.md'}, {out / 'regress.png'}", highlight=False)


def _check(options: Options, console: Console) -> int:
    verdicts, _ = _compare(options, console)
    return WORSE if any(one.worse for one in verdicts) else 0


def _accept(options: Options, console: Console) -> int:
    if (baseline.KEPT / "baseline.json").exists():
        _, here = _compare(options, console)
    else:
        here = _here(options, console)
    commit = tree.last_commit()
    if tree.differs_from(commit):
        raise RegressError("relocator/ has changes that are not committed: commit them first")
    baseline.save(Baseline(commit, baseline.measured_with(), here))
    console.print(f"{baseline.KEPT / 'baseline.json'}: {commit[:12]}; commit it", highlight=False)
    return 0


def _noise(options: Options, console: Console) -> int:
    names = _known("change", options.names, noise.CHANGES)
    moved = noise.measured(names, console, **_how(options))
    baseline.save_noise(moved, tree.last_commit())
    worst = sorted(moved.items(), key=lambda item: -max(item[1].values()))
    for name, changes in worst[:10]:
        console.print(f"{max(changes.values()):.3%}  {name}", highlight=False)
    return 0


def _prove(options: Options, console: Console) -> int:
    wanted = _known("slowdown", options.names, [one.name for one in SLOWDOWNS])
    missed = 0
    for one in [one for one in SLOWDOWNS if one.name in wanted]:
        verdicts = found(one, baseline.noise(), console, **_how(options))
        named = any(verdict.worse and verdict.figure.name == one.figure for verdict in verdicts)
        missed += not named
        console.print(f"{one.name} ({one.what}): {'caught' if named else 'NOT CAUGHT'}")
        for hint in report.hints(verdicts):
            console.print(f"    {hint}", highlight=False)
    return WORSE if missed else 0


def _bisect(options: Options, console: Console) -> int:
    _known("figure", [options.figure] if options.figure else [], [one.name for one in FIGURES])
    return bisect.run(options.good, options.bad, options.figure, console, **_how(options))


def _step(options: Options, console: Console) -> int:
    return bisect.step(options.good, options.figure, console, **_how(options))


class _Usage(Exception):
    """A parameter that can't be."""


def _known(what: str, names: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names, all known ones if there are none."""
    if unknown := [name for name in names if name not in known]:
        raise _Usage(f"{what} '{unknown[0]}': must be one of {', '.join(known)}")
    return list(names or known)


def _parser() -> argparse.ArgumentParser:
    parser = experiments.parser("regress", __doc__)
    parser.set_defaults(run=_check)
    parser.add_argument("--out", type=Path, default=measure.OUT, metavar="DIR", help="out/regress")
    parser.add_argument(
        "--again", action="store_true", help="measure also what was measured before"
    )
    parser.add_argument(
        "--at-once", type=int, metavar="N", help="boots of the lab beside each other; one a core"
    )
    commands = parser.add_subparsers(metavar="COMMAND")
    simple: tuple[tuple[str, Callable[[Options, Console], int]], ...] = (
        ("check", _check),
        ("accept", _accept),
    )
    for name, run in simple:
        commands.add_parser(name).set_defaults(run=run)
    for name, run in (("noise", _noise), ("prove", _prove)):
        some = commands.add_parser(name)
        some.add_argument("names", nargs="*", metavar="NAME", help="only these")
        some.set_defaults(run=run)
    bisects = commands.add_parser("bisect", help="which commit made it worse")
    steps = commands.add_parser("bisect-step", help="what git bisect runs at each commit")
    for command, run in ((bisects, _bisect), (steps, _step)):
        command.add_argument("good", metavar="GOOD", help="a commit")
        if command is bisects:
            command.add_argument("bad", metavar="BAD", help="a later one, which is worse")
        command.add_argument("--figure", metavar="NAME", help="judge by this one only")
        command.set_defaults(run=run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0: nothing is worse; 1: something is, or it failed; 2: a wrong parameter."""
    ending.on_signals()
    options = _parser().parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    try:
        return int(options.run(options, console))
    except (_Usage, RegressError, LabError) as error:
        print(f"regress: {error}", file=sys.stderr)
        return 2 if isinstance(error, _Usage) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
