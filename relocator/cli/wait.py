"""`relocator wait`: until every block is here and the source may be switched off."""

import argparse
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from relocator.cli.common import Commands, add_control, human_rate
from relocator.client import Client
from relocator.config import parse_seconds
from relocator.errors import RelocatorError

EVERY_S = 0.5


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "wait", help="wait until the relocation is complete", description=__doc__.partition(": ")[2]
    )
    add_control(parser)
    parser.add_argument("--timeout", metavar="S", help="give up after so many seconds (never)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    limit_s = parse_seconds("--timeout", options.timeout) if options.timeout else float("inf")
    give_up_s = time.monotonic() + limit_s
    client = Client(options.control)
    status = client.call("status")
    columns = (
        TextColumn("present"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("present", total=status.get("total_blocks", 1), rate="")
        while status["state"] != "complete":
            if time.monotonic() > give_up_s:
                raise RelocatorError(f"gave up after {limit_s:g} s: not complete yet")
            progress.update(
                task,
                completed=status["present_blocks"],
                rate=human_rate(status["rate_bits_per_s"]),
            )
            time.sleep(min(EVERY_S, max(0.0, give_up_s - time.monotonic())))
            status = client.call("status")
        progress.update(task, completed=status.get("total_blocks", 1), rate="complete")
    return 0
