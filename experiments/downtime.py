"""How long a real guest stands still, with our handover and with a drive mirror, as a table.

    python -m experiments.downtime [--rtt 20ms ...] [--systems NAME ...] [--out DIR]

Runs the cells of the scenario `guest` (its first seed) that are not in DIR yet, in the lab, one
after the other, and prints a Markdown table: what docs/downtime.md holds. Ctrl-C ends it; what is
complete stays.

Exit status: 0 all ran well; 1 a run failed; 2 a wrong argument; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.analysis import measures, series
from experiments.publishing import wording
from experiments.running import code, runner
from experiments.running.rundir import Run, RunError, load_run
from experiments.scenarios import cells
from experiments.scenarios.cells import Cell
from testbed import ending
from testbed.lab.image import LabError

SYSTEMS = ("relocator", "mirror-sync", "mirror")
AFTER_S = 3.0
RTTS = ("20ms", "100ms")
COLUMNS = (
    *("round trip", "system", "stands still", "of it the handover", "slowest write after"),
    *("until the guest runs", "until the source may go", "memory", "disk"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * (len(COLUMNS) - 2)}"


def wanted(rtts: Sequence[str], systems: Sequence[str]) -> list[Cell]:
    """The cells of these, in the table's order."""
    found = {cell.id: cell for cell in cells.quick_or_full(quick=False, seeds=1)}
    return [found[f"guest/rtt={rtt}/{system}/s1"] for rtt in rtts for system in systems]


def row(cell: Cell, run: Run | None) -> str:
    """A line of the table; of a run that failed, that it did."""
    begins = f"| {cell.axes['rtt']} | {cell.system} "
    if run is None:
        return begins + "| never | | | | | | |"
    summary, wan = run.summary, run.summary["wan_bytes"]
    texts = (
        wording.quantity(summary["downtime_s"], "ms"),
        wording.quantity(summary["handover_s"], "ms"),
        _slowest(run),
        wording.quantity(summary["switch_s"] - summary["move_s"] + summary["downtime_s"], "s"),
        _free(run),
        wording.quantity(wan["memory"], "MB"),
        wording.quantity(wan["disk"], "MB"),
    )
    return begins + "".join(f"| {text} " for text in texts) + "|"


def _free(run: Run) -> str:
    """From the move's beginning until the source is not needed."""
    took_s = measures.from_move_s(run)
    return "not seen" if took_s is None else wording.quantity(took_s, "s")


def _slowest(run: Run) -> str:
    """The slowest write of the seconds after the switch, by the guest's own clock."""
    found = series.latencies(run, "write", series.Window(0.0, AFTER_S))["latency_s"]
    return wording.quantity(float(found.max()), "ms") if len(found) else "none"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.downtime", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rtt", nargs="+", choices=RTTS, default=RTTS)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--out", type=Path, default=Path("out/cells"), help="default: %(default)s")
    args = parser.parse_args(argv)
    ending.on_signals()
    lines, failed = [], False
    try:
        for cell in wanted(args.rtt, args.systems):
            print(f"downtime: {cell.id}", file=sys.stderr, flush=True)
            if not runner.is_current(args.out, cell, code.version()):
                runner.run(cell, args.out.resolve())
            ended = runner.outcome(args.out, cell.id)
            failed = failed or not runner.well(cell, ended)
            place = runner.directory(args.out, cell.id)
            lines.append(row(cell, load_run(place) if ended == "ok" else None))
    except (LabError, RunError, runner.RunnerError, OSError) as error:
        print(f"downtime: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("downtime: interrupted; the same command goes on", file=sys.stderr)
        return 130
    print("\n".join([HEAD, *lines]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
