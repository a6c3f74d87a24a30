"""`make reproduce`: every run, then metrics, figures and report.

    python -m experiments.reproduce [--quick] [--seeds N] [--out DIR] [--cores N]
                                    [--runs ARCHIVE] [--profile DIR] [--dry-run]

Snakemake does the work (see Snakefile), on this machine or, with a profile, on a cluster. Runs on
the virtual clock go side by side, one a core; one on the real clock is alone. What is complete, of
the same command and code, stays; what failed, or is of other code, is moved to DIR/superseded and
runs again. Published runs (`--runs results/full/runs.tar.xz`) count as made here, so that a seed or
a system is added without the others. A run that fails is kept, marked, and named at the end; the
others go on. Ctrl-C ends everything that was started; the same command goes on from there.

Exit status: 0 all well, or what failed is a peer that its scenario says may fail; 1 a run or a step
failed; 2 a wrong argument or scenario; 130 interrupted.
"""

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

import experiments
from experiments.running import archive, code, rundir, runner, watch
from experiments.running.batch import Batch, Job
from experiments.scenarios import cells
from experiments.scenarios.cells import Cell
from experiments.scenarios.schema import ScenarioError
from testbed import ending
from testbed.lab import build, entry
from testbed.lab.image import LabError
from testbed.lab.payload import PROJECT

OUT = Path("out/reproduce")
QUICK_OUT = Path("out/reproduce-quick")
SNAKEFILE = PROJECT / "experiments" / "running" / "Snakefile"
CLUSTER_PROCESSORS = 4  # of a run on the real clock; on one machine it has them all
LOG_TAIL_LINES = 20
EXIT_USAGE = 2


class ReproduceError(Exception):
    """It can't go on; the message is for the person who started it."""


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Holds the output directory; ReproduceError if another one does."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReproduceError(f"another one is at work in {out}") from None
        yield


def prepare(found: Sequence[Cell], out: Path) -> set[str]:
    """Makes room for the runs that have to be made; the cells whose runs stay as they are."""
    version = code.version()
    current: set[str] = set()
    for cell in found:  # what a cell needs comes before it
        if all(other in current for other in cell.needs) and runner.is_current(out, cell, version):
            current.add(cell.id)
    for cell in found:
        if cell.id not in current:
            runner.supersede(out, cell.id)
    return current


def workflow(found: Sequence[Cell], out: Path) -> None:
    """Writes what Snakemake is given. Jobs without its directory get what is below it, no more."""
    cells.write(out / "matrix.json", found)
    shutil.copyfile(SNAKEFILE, out / "Snakefile")


def snakemake(args: argparse.Namespace, out: Path) -> list[str]:
    """The command that makes everything in `out`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(out / "Snakefile")]
    command += ["--directory", str(out), "--keep-going", "--rerun-incomplete", "--nolock"]
    command += ["--rerun-triggers", "mtime"]
    if args.profile is not None:
        cores = CLUSTER_PROCESSORS
        command += ["--profile", str(args.profile.resolve())]
        command += ["--default-storage-prefix", str(out)]  # if the profile has a storage at all
    else:
        cores = args.cores or len(os.sched_getaffinity(0))
        command += ["--cores", str(cores), "--resources", f"mem_mb={available_mb()}"]
    command += ["--config", f"matrix={out / 'matrix.json'}", f"project={PROJECT}"]
    return [*command, f"python={sys.executable}", f"processors={cores}"]


def available_mb() -> int:
    """Memory for runs; at least one run is tried, whatever there is."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return max(int(line.split()[1]) // 1024, 5000)
    return 5000


def make_all(args: argparse.Namespace, found: Sequence[Cell], out: Path, console: Console) -> int:
    """Runs what is missing, and shows it; Snakemake's exit status."""
    shutil.rmtree(out / "steps", ignore_errors=True)  # tables and figures are always made anew
    started = {cell.id for cell in found} - prepare(found, out)
    console.print(
        f"{len(found)} cells, {len(found) - len(started)} complete; into {out}", highlight=False
    )
    if any(cell.same_as is None and cell.id in started for cell in found):
        _image_once(found)
    job = Job("snakemake", snakemake(args, out), out / "snakemake.log")
    shown = watch.Watch([cell for cell in found if cell.id in started], out)
    with Batch([job], 1, out) as batch:
        watch.follow(batch, shown, console)
    if job.status != 0:
        tail = "\n".join(f"    {line}" for line in job.tail(LOG_TAIL_LINES))
        console.print(f"Snakemake ended with status {job.status}; {job.log} ends:", style="bold")
        console.print(tail, highlight=False, markup=False)
    return job.status or 0


def _image_once(found: Sequence[Cell]) -> None:
    """Builds the VM's image, if a run will boot it: not in all runs at the same time."""
    if any(entry.choose("auto", clock).where == "vm" for clock in {cell.clock for cell in found}):
        build.ensure()


def installed(found: Sequence[Cell], console: Console) -> list[Cell]:
    """The cells that can run here; says which systems are left out."""
    for system, lacks in sorted({(cell.system, cell.lacks) for cell in found if cell.lacks}):
        console.print(f"Left out: {system}: {lacks} is not installed", highlight=False)
    return [cell for cell in found if not cell.lacks]


def summary(found: Sequence[Cell], out: Path, console: Console) -> bool:
    """How the runs ended, and each that didn't end well by name.

    True if all did, but for failures that a scenario expects of a peer: they are findings.
    """
    ended = [(cell, runner.outcome(out, cell.id) or "missing") for cell in found]
    outcomes = [outcome for _, outcome in ended]
    counts = ", ".join(
        f"{count} {name}"
        for name in ("ok", "failed", "refused", "missing")
        if (count := outcomes.count(name))
    )
    console.print(f"Runs:   {counts}", highlight=False)
    for cell, outcome in ended:
        if outcome != "ok":
            place = runner.directory(out, cell.id)
            reason = runner.read_json(place / "run.json").get("reason") or "it did not run"
            finding = cell.finding(outcome)
            known = f" (known: {finding})" if finding else ""
            text = (
                f"  {outcome}{known}: {cell.id}: {rundir.brief(reason)} (see {place / 'lab.log'})"
            )
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    return all(runner.well(cell, outcome) for cell, outcome in ended)


def reproduce(args: argparse.Namespace, console: Console) -> int:
    """All of it; the exit status."""
    found = installed(cells.quick_or_full(args.quick, args.seeds), console)
    out = (args.out or (QUICK_OUT if args.quick else OUT)).resolve()
    with only_one(out):
        workflow(found, out)
        if args.dry_run:
            return subprocess.run([*snakemake(args, out), "--dry-run"], check=False).returncode
        runner.clear(out)
        if args.runs is not None:
            added = archive.unpack(args.runs, out)
            console.print(f"{len(added)} runs taken from {args.runs}", highlight=False)
        status = make_all(args, found, out, console)
        well = summary(found, out, console)
    report = out / "index.html"
    if report.exists():
        console.print(f"Report: {report}", highlight=False, soft_wrap=True)
    return 0 if well and status == 0 else 1


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}': must be a whole number above 0")


def _directory(text: str) -> Path:
    if (Path(text) / "config.yaml").is_file():
        return Path(text)
    raise argparse.ArgumentTypeError(f"'{text}': must be a directory with a config.yaml")


def _archive(text: str) -> Path:
    if Path(text).is_file():
        return Path(text)
    raise argparse.ArgumentTypeError(f"'{text}': must be published runs, a {archive.NAME}")


def _parser() -> argparse.ArgumentParser:
    parser = experiments.parser("reproduce", __doc__)
    parser.add_argument("--quick", action="store_true", help="the small matrix, in minutes")
    parser.add_argument("--seeds", type=_count, metavar="N", help="seeds of each scenario")
    parser.add_argument("--out", type=Path, help=f"default: {OUT}, or {QUICK_OUT}")
    parser.add_argument("--cores", type=_count, metavar="N", help="default: all of this machine's")
    parser.add_argument(
        "--runs", type=_archive, metavar="ARCHIVE", help="published runs, which count as made here"
    )
    parser.add_argument(
        "--profile", type=_directory, metavar="DIR", help="of Snakemake, for a cluster"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    ending.on_signals()
    started_s = time.monotonic()
    console = Console()
    try:
        status = reproduce(args, console)
    except ScenarioError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (ReproduceError, archive.ArchiveError, LabError, OSError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("reproduce: interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT
    console.print(f"Time:   {watch.clock(time.monotonic() - started_s)}", highlight=False)
    return status


if __name__ == "__main__":
    sys.exit(main())
