"""The matrix of all runs: lists its cells, shows one, runs one.

    python -m experiments.running.matrix list [--quick] [--seeds N] [SCENARIO...]
    python -m experiments.running.matrix show CELL [--quick]
    python -m experiments.running.matrix run CELL [--quick] [--out DIR] [--again]

`run` runs any cell alone, and before it those that it needs; a run that stands in DIR already, of
the same command and code, is left as it is (`--again`: not). A quick cell has the id of the full
one, but is smaller: say `--quick` for it. `make reproduce` runs them all.

Exit status: 0 well; 1 the run failed or can't be; 2 a wrong argument or scenario; 130 interrupted.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import experiments
from experiments.running import code, runner
from experiments.running.runner import RunnerError
from experiments.scenarios import cells, schema
from experiments.scenarios.cells import Cell
from experiments.scenarios.schema import ScenarioError
from testbed import ending
from testbed.lab.image import LabError

DEFAULT_OUT = Path("out/cells")
EXIT_FAILED = 1
EXIT_USAGE = 2


class _Wrong(Exception):
    """A wrong argument; the message names it and what would be right."""


def _by_id(found: Sequence[Cell], wanted: str) -> Cell:
    cell = next((one for one in found if one.id == wanted), None)
    if cell is None:
        close = schema.nearest(wanted, (one.id for one in found)).partition("known:")[0]
        raise _Wrong(f"cell '{wanted}': there is none; {close}`matrix list` has them all")
    return cell


def _list(found: Sequence[Cell], names: Sequence[str]) -> int:
    known = sorted({cell.scenario for cell in found})
    for name in names:
        if name not in known:
            raise _Wrong(f"scenario '{name}': {schema.nearest(name, known)}")
    shown = [cell for cell in found if not names or cell.scenario in names]
    for cell in shown:
        print(cell.id + (f"  = {cell.same_as}" if cell.same_as is not None else ""))
    runs = sum(cell.same_as is None for cell in shown)
    print(f"{len(shown)} cells, {runs} runs", file=sys.stderr)
    return 0


def _show(cell: Cell) -> int:
    print(json.dumps(cell.document(), indent=1, sort_keys=True))
    print(runner.shown_command(cell))
    return 0


def _run(found: Sequence[Cell], cell: Cell, out: Path, again: bool) -> str:
    """Runs what the cell needs, then the cell; how it ended."""
    if cell.lacks:
        raise RunnerError(f"{cell.id}: it needs {cell.lacks}: not in the path")
    for other in cell.needs:
        _run(found, _by_id(found, other), out, False)
    if not again and runner.is_current(out, cell, code.version()):
        _say(f"{cell.id}: complete already, in {runner.directory(out, cell.id)}")
        return "ok"
    place = runner.building(out, cell.id) / "lab.log"
    _say(f"{cell.id}: runs; its output goes to {place}" if cell.same_as is None else cell.id)
    ended = runner.run(cell, out)
    _say(f"{cell.id}: {ended}, in {runner.directory(out, cell.id)}")
    if ended != "ok":
        reason = runner.read_json(runner.directory(out, cell.id) / "run.json").get("reason")
        _say(f"{cell.id}: {reason}")
    return ended


def _say(text: str) -> None:
    print(f"matrix: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = experiments.parser("running.matrix", __doc__)
    commands = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    lists = commands.add_parser("list", help="the cells")
    lists.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="only these scenarios'")
    shows = commands.add_parser("show", help="a cell and its command line")
    runs = commands.add_parser("run", help="run a cell, and what it needs")
    for command in (shows, runs):
        command.add_argument("cell", metavar="CELL", help="its id, from list")
    for command in (lists, shows, runs):
        command.add_argument("--quick", action="store_true", help="the small matrix's")
        command.add_argument("--seeds", type=int, metavar="N", help="seeds of each scenario")
        command.add_argument("--matrix", type=Path, metavar="FILE", help="cells from a matrix.json")
    runs.add_argument("--out", type=Path, default=DEFAULT_OUT, help="default: %(default)s")
    runs.add_argument("--again", action="store_true", help="also if it is complete")
    runs.add_argument(
        "--as-job",
        action="store_true",
        help="what it needs has run; status 0 also if the run failed (its run.json says so)",
    )
    return parser


def _cells(args: argparse.Namespace) -> list[Cell]:
    if args.matrix is not None:
        return cells.read(args.matrix)
    if args.seeds is not None and args.seeds < 1:
        raise _Wrong(f"seeds '{args.seeds}': must be 1 or more")
    return cells.quick_or_full(args.quick, args.seeds)


def _dispatch(args: argparse.Namespace) -> int:
    found = _cells(args)
    if args.verb == "list":
        return _list(found, args.scenarios)
    cell = _by_id(found, args.cell)
    if args.verb == "show":
        return _show(cell)
    out = args.out.resolve()
    if args.as_job:
        runner.run(cell, out)
        return 0
    return 0 if _run(found, cell, out, args.again) == "ok" else EXIT_FAILED


def main(argv: Sequence[str] | None = None) -> int:
    ending.on_signals()
    try:
        return _dispatch(_parser().parse_args(argv))
    except (_Wrong, ScenarioError) as error:
        _say(str(error))
        return EXIT_USAGE
    except (RunnerError, LabError, OSError) as error:
        _say(str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        _say("interrupted; nothing was kept of this run")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
