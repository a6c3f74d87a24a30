"""`make demo`: a VM moves across a WAN three times, and what came of it on one page.

    python -m experiments.demo [--vm dm|qemu] [--seed N] [--out DIR]
                               [--where auto|native|vm] [--clock virtual|real]

The runs differ in one thing, what becomes of the disk: it stays behind (`remote`), comes as it is
read (`on-demand`), or comes also in the background (`background`). The VM is a file system whose
device is exchanged under it (`dm`), or one that QEMU migrates live (`qemu`). On the lab's virtual
clock a run does not feel what else the machine does, so the runs go side by side, one a core; where
the lab is on the real clock they go one after the other. The results depend on the seed and the
code alone (and, of `qemu`, on the kept state that the guest is woken from).

Everything is written into a directory beside DIR, which takes DIR's place when all is done: what
an earlier demo left is there until then. If a run fails, its log is kept in DIR-failed.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import experiments
from experiments.analysis.series import Row, Runs
from experiments.publishing import report, wording
from experiments.running import progress
from experiments.running.batch import Batch, Job
from experiments.running.rundir import Run, RunError, load_run, replace
from testbed import ending
from testbed.lab import build, entry
from testbed.lab.image import LabError
from testbed.migration.lab import along

PROJECT = Path(__file__).resolve().parent.parent
DEFAULT_OUT = Path("out/demo")
DEFAULT_SEED = 42
LOG_TAIL_LINES = 15

COMMON = (
    *("--rtt", "20ms", "--rate", "100mbit"),
    *("--disk", "64M", "--fill", "40M", "--memory", "24M"),
    *("--switch-at", "8s", "--background-delay", "6s", "--duration", "32s", "--ceiling", "on"),
)
# A guest of QEMU is emulated within the lab: it does less, and its memory takes six seconds.
COMMON_QEMU = (
    *("--guest", "qemu", "--rtt", "20ms", "--rate", "100mbit"),
    *("--disk", "64M", "--fill", "40M", "--read-iops", "20", "--write-iops", "5"),
    *("--switch-at", "9s", "--background-delay", "5s", "--duration", "26s", "--ceiling", "on"),
)
GUESTS = {"dm": ("testbed.lab", COMMON), "qemu": ("testbed.migration.lab", COMMON_QEMU)}
# The order of the table. The longest run starts first: see `jobs`.
VARIANTS: dict[str, tuple[str, ...]] = {
    "remote": ("--system", "remote"),
    "on-demand": ("--system", "relocator", "--background", "off"),
    "background": ("--system", "relocator", "--background", "on"),
}
START_ORDER = ("background", "on-demand", "remote")


class DemoError(Exception):
    """The demo can't go on; the message is for the person who started it."""


def jobs(building: Path, seed: int, where: str, clock: str | None, guest: str = "dm") -> list[Job]:
    """The three runs as jobs, each with its run directory and log below `building`."""
    lab_options = ["--where", where, "--seed", str(seed)]
    if clock is not None:
        lab_options += ["--clock", clock]
    module, common = GUESTS[guest]
    return [
        Job(
            name=name,
            command=[
                *(sys.executable, "-m", module, "run"),
                *("--out", str((building / "runs" / name).resolve()), *lab_options, "--"),
                *("testbed.migration", *common, *VARIANTS[name], "--seed", str(seed)),
            ],
            log=building / "logs" / f"{name}.log",
        )
        for name in START_ORDER
    ]


def run_all(batch: Batch, console: Console) -> None:
    """Runs the batch to its end and shows how far it is; DemoError if a run fails."""
    with batch:
        progress.follow(batch, console, wording.title)
        failed = batch.failed
    if failed is not None:
        tail = "\n".join(f"    {line}" for line in failed.tail(LOG_TAIL_LINES))
        raise DemoError(
            f"the run '{failed.name}' ended with status {failed.status}; its log ends:\n{tail}"
        )


def load_all(building: Path) -> dict[str, Run]:
    """The finished runs in the table's order; RunError if one is unusable."""
    runs = {name: load_run(building / "runs" / name) for name in VARIANTS}
    if failed := wording.failed_checks(runs):
        raise RunError("a check failed: " + "; ".join(failed))
    return runs


@contextmanager
def building_for(out: Path) -> Iterator[Path]:
    """A directory to build in, which becomes `out` if the block succeeds.

    If it fails with an error, logs and runs are kept in `out`-failed; if it is interrupted nothing
    is kept.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    building.chmod(0o755)
    try:
        yield building
        replace(building, out)
    except Exception:
        replace(building, failed_for(out))
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def failed_for(out: Path) -> Path:
    return out.with_name(out.name + "-failed")


def reproduce_command(seed: int, where: str, clock: str | None, guest: str = "dm") -> str:
    """What to type to get the same results."""
    if (seed, where, clock) == (DEFAULT_SEED, "auto", None):
        return "make demo" if guest == "dm" else f"make demo VM={guest}"
    parts = [".venv/bin/python -m experiments.demo", f"--seed {seed}"]
    parts += [f"--vm {guest}"] if guest != "dm" else []
    parts += [f"--where {where}"] if where != "auto" else []
    parts += [f"--clock {clock}"] if clock is not None else []
    return " ".join(parts)


def show(console: Console, runs: Runs, rows: Sequence[Row], out: Path) -> None:
    """The table and the last words in the terminal."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title="* the best: lower is better",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in runs:
        table.add_column(name, justify="right")
    for row in rows:
        cells = (
            f"[bold]{wording.cell(row, name)}[/] *"
            if name in row.best
            else f"{wording.cell(row, name)}  "
            for name in runs
        )
        table.add_row(f"{row.label}, {row.unit}", *cells)
    console.print(table)
    if speed := wording.speed_sentence(runs):
        console.print(f"Speed:  {speed}", highlight=False, soft_wrap=True)
    count = sum(len(run.checks) for run in runs.values())
    names = sorted({check["name"] for run in runs.values() for check in run.checks})
    console.print(f"Checks: all {count} passed ({', '.join(names)})", highlight=False)
    console.print(f"Page:   {out / 'index.html'}", highlight=False, soft_wrap=True)


def demo(
    seed: int, out: Path, where: str, clock: str | None, console: Console, *, guest: str = "dm"
) -> None:
    """The whole demo; DemoError, RunError or LabError with the reason if it can't be completed."""
    choice = entry.choose(where, clock)
    if choice.where == "vm":
        build.ensure()  # once, not in both runs at the same time
    if guest == "qemu":
        along([*COMMON_QEMU])
    virtual = choice.where == "vm" and clock != "real"
    at_once = min(len(os.sched_getaffinity(0)), len(VARIANTS)) if virtual else 1
    with building_for(out) as building:
        run_all(Batch(jobs(building, seed, where, clock, guest), at_once, PROJECT), console)
        runs = load_all(building)
        rows = report.write_results(building, runs, reproduce_command(seed, where, clock, guest))
    show(console, runs, rows, out)


def _parser() -> argparse.ArgumentParser:
    parser = experiments.parser("demo", __doc__)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="default: %(default)s")
    text = "dm: a file system whose device is exchanged; qemu: a VM that migrates live"
    parser.add_argument("--vm", choices=GUESTS, default="dm", help=f"{text} (default dm)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="default: %(default)s")
    parser.add_argument("--where", choices=entry.WHERES, default="auto", help="default: auto")
    parser.add_argument(
        "--clock", choices=entry.CLOCKS, help="default: virtual where there is a VM"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    ending.on_signals()
    try:
        demo(args.seed, args.out, args.where, args.clock, Console(), guest=args.vm)
    except (DemoError, RunError, LabError) as error:
        print(f"demo: {error}", file=sys.stderr)
        if (logs := failed_for(args.out) / "logs").is_dir():
            print(f"demo: logs are in {logs}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; nothing was kept", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
