"""`make claims`: every claim checked by runs made here and now.

    python -m experiments.claims [--out DIR] [--cores N] [--published DIR] [--list]

Makes the runs that claims.toml speaks of (small ones, on the virtual clock, so what this machine
does besides doesn't matter), and prints for each claim the figure that is published, the one
measured here, and whether the claim holds. The table is left in DIR/claims.md. Ctrl-C ends it, and
the same command goes on. `--list` shows the claims and the commands that make their runs.

Exit status: 0 all claims hold; 1 one doesn't or can't be told, or a run is missing; 2 a wrong
argument or claim; 130 interrupted.
"""

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

import experiments
from experiments import reproduce
from experiments.claims import claim as claims
from experiments.claims.claim import Claim
from experiments.scenarios import cells
from experiments.scenarios.cells import Cell
from experiments.scenarios.schema import ScenarioError
from testbed import ending
from testbed.lab.image import LabError
from testbed.lab.payload import PROJECT

OUT = Path("out/claims")
PUBLISHED = PROJECT / "results" / "quick"
RUN = "python -m experiments.running.matrix run"
HEAD = ("claim", "paper", "published", "measured", "expected", "verdict")


def rows(found: Sequence[Claim], published: Path, measured: Path) -> list[list[str]]:
    """A row for each claim, in the words of HEAD, from two directories with a metrics.csv."""
    tables = [pd.read_csv(directory / "metrics.csv") for directory in (published, measured)]
    result = []
    for one in found:
        was, now = (one.figure(table) for table in tables)
        verdict = "not told" if math.isnan(now) else "holds" if one.holds(now) else "DOES NOT HOLD"
        texts = [_text(one, was), _text(one, now), one.expected, verdict]
        result.append([one.says, one.paper or "–", *texts])
    return result


def _text(one: Claim, figure: float) -> str:
    if math.isnan(figure):
        return "–"
    return "∞" if math.isinf(figure) else f"{figure:.3g}{one.suffix}"


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The same as a page."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table), ""])


def show(table: Sequence[Sequence[str]], console: Console) -> None:
    """The table on the terminal, what does not hold in red."""
    shown = Table(title="What is claimed, and what came of it here")
    for name in HEAD:
        shown.add_column(name, overflow="fold")
    for row in table:
        shown.add_row(*row, style="" if row[-1] == "holds" else "bold red")
    console.print(shown)


def listing(found: Sequence[Claim], wanted: Sequence[Cell]) -> str:
    """The claims, each with the commands that make its runs."""
    lines = []
    for number, one in enumerate(found, 1):
        lines.append(f"{number}. {one.says}: {one.metric}, {one.expected}")
        lines += [f"     {RUN} {cell} --quick" for cell in one.cells]
    runs = sum(cell.same_as is None for cell in wanted)
    return "\n".join([*lines, f"{len(found)} claims, {runs} runs"])


def check(args: argparse.Namespace, found: Sequence[Claim], console: Console) -> int:
    """Makes the runs and the table; the exit status."""
    out = args.out.resolve()
    wanted = claims.cells_of(found, cells.quick_or_full(quick=True))
    with reproduce.only_one(out):
        reproduce.workflow(wanted, out)
        status = reproduce.make_all(args, wanted, out, console)
        well = reproduce.summary(wanted, out, console)
    if not (out / "metrics.csv").is_file():
        return 1
    table = rows(found, args.published, out)
    (out / "claims.md").write_text(markdown(table), encoding="utf-8")
    show(table, console)
    console.print(f"Table: {out / 'claims.md'}", highlight=False, soft_wrap=True)
    return 0 if well and status == 0 and all(row[-1] == "holds" for row in table) else 1


def _parser() -> argparse.ArgumentParser:
    parser = experiments.parser("claims", __doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    parser.add_argument("--cores", type=int, metavar="N", help="default: all of this machine's")
    parser.add_argument(
        "--published", type=Path, default=PUBLISHED, metavar="DIR", help="default: results/quick"
    )
    parser.add_argument("--list", action="store_true", help="only show the claims and their runs")
    parser.set_defaults(profile=None)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.cores is not None and args.cores < 1:
        parser.error(f"argument --cores: '{args.cores}': must be a whole number above 0")
    if not (args.published / "metrics.csv").is_file():
        parser.error(f"argument --published: '{args.published}': must have a metrics.csv")
    ending.on_signals()
    try:
        found = claims.load()
        if args.list:
            print(listing(found, claims.cells_of(found, cells.quick_or_full(quick=True))))
            return 0
        return check(args, found, Console())
    except ScenarioError as error:
        print(f"claims: {error}", file=sys.stderr)
        return 2
    except (reproduce.ReproduceError, LabError, OSError) as error:
        print(f"claims: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("claims: interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
