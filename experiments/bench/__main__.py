"""`python3 -m experiments.bench [local|size|wan|threads]... [--quick]`: results in out/bench.

Each part writes PART.json (everything) and PART.md (its table). Exit status 0 says that it was
measured, not that the goals are met: those are judged in docs/bench.md.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.bench import local, size, systems, tables, wan
from relocator.errors import RelocatorError
from testbed import ending
from testbed.hosts.supervise import ProcessError

Rows = tuple[list[str], list[list[str]]]
OUT = Path("out/bench")


def _write(out: Path, name: str, results: dict[str, Any], rows: Rows, console: Console) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, sort_keys=True) + "\n"
    (out / f"{name}.json").write_text(text)
    (out / f"{name}.md").write_text(tables.markdown(*rows))
    console.print(tables.shown(name, *rows))
    console.print(f"written: {out / name}.json, {out / name}.md")


def _local(options: argparse.Namespace, console: Console) -> None:
    plan = local.Plan(0.5, 3) if options.quick else local.Plan()
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        results = local.run(plan, Path(work), console)
    _write(options.out, "local", results, local.rows(results), console)


def _threads(options: argparse.Namespace, console: Console) -> None:
    plan = local.Plan(0.5, 3 if options.quick else 9, start=systems.start_thread_sweep)
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        results = local.run(plan, Path(work), console)
    _write(options.out, "threads", results, local.rows(results), console)


def _size(options: argparse.Namespace, console: Console) -> None:
    seconds, rounds = (0.5, 2) if options.quick else (1.5, 3)
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        results = size.run(seconds, rounds, Path(work), console)
    _write(options.out, "size", results, size.rows(results), console)


def _wan(options: argparse.Namespace, console: Console) -> None:
    links = wan.QUICK if options.quick else wan.LINKS
    results = wan.run(links, options.out / "wan", options.reuse, console)
    _write(options.out, "wan", results, wan.rows(results), console)


PARTS: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "local": _local,
    "size": _size,
    "wan": _wan,
    "threads": _threads,
}
DEFAULT_PARTS = ("local", "size", "wan")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="experiments.bench", description=__doc__)
    names = ", ".join(PARTS)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{names}; default: all but threads"
    )
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument(
        "--reuse", action="store_true", help="don't repeat WAN runs whose results are there"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="for results; default: %(default)s"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the parts asked for, in order; status 2 for a part that isn't one."""
    ending.on_signals()
    options = _parser().parse_args(argv)
    console = Console()
    if unknown := [part for part in options.parts if part not in PARTS]:
        print(f"bench: part '{unknown[0]}': must be one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    try:
        for part in options.parts or DEFAULT_PARTS:
            PARTS[part](options, console)
    except (ProcessError, RelocatorError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
