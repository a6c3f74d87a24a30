"""`relocator wait`: until every block is here and the source may be switched off.

With `--ready` it waits for what comes before: that the copy ahead is in step.
"""

import argparse
import re
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from relocator import words
from relocator.cli.common import Commands, add_control, human_rate, human_time
from relocator.cli.page import behind_text
from relocator.client import Client
from relocator.config import parse_seconds
from relocator.errors import ConfigError, RelocatorError
from relocator.running.states import ALL_HERE

EVERY_S = 0.5
#: state -> what has to happen before all can be here
_WAITS_FOR = {
    "standby": "in standby: waits for `activate`",
    "activating": "waits for the seal, or `release`",
}
_ABOUT = (
    "Wait until every block is here and the source may be switched off; with --ready for what "
    "comes before: that the copy ahead is in step."
)


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "wait",
        help="wait until the relocation is complete",
        description=_ABOUT,
    )
    add_control(parser)
    parser.add_argument("--timeout", metavar="S", help="give up after so many seconds (never)")
    parser.add_argument(
        "--ready",
        metavar="SIZE|Ns",
        help="in standby: until a switch would leave no more than this at the source, 64M or 2s",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    limit_s = parse_seconds("--timeout", options.timeout) if options.timeout else float("inf")
    goal = _complete if options.ready is None else _ready(options.ready)
    give_up_s = time.monotonic() + limit_s
    client = Client(options.control)
    columns = (
        TextColumn("present"),
        BarColumn(30),
        TaskProgressColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("present", total=1, told="")
        while True:
            status = client.call("status")
            progress.update(
                task,
                total=status["total_blocks"] or 1,
                completed=status["present_blocks"],
                told=_told(status, _WAITS_FOR if options.ready is None else {}),
            )
            missing = goal(status)
            if missing is None:
                progress.update(task, told="there")
                return 0
            if time.monotonic() > give_up_s:
                raise RelocatorError(f"gave up after {limit_s:g} s: {missing}")
            time.sleep(min(EVERY_S, max(0.0, give_up_s - time.monotonic())))


def _told(status: dict[str, Any], waits_for: dict[str, str]) -> str:
    """What the bar says beside itself: how fast it goes, or what it waits for in that state."""
    if status["role"] == "target" or status["state"] == "outdated":
        return str(status["state"])
    if not status["source_connected"]:
        return "source not connected"
    if not status["eta_s"] and status["state"] in waits_for:
        return waits_for[status["state"]]
    left = "" if status["eta_s"] is None else f"  {human_time(status['eta_s'])}"
    return human_rate(status["rate_bits_per_s"]) + left


def _complete(status: dict[str, Any]) -> str | None:
    """What is missing; None if nothing is.

    Raises:
        RelocatorError: it can't become complete any more.
    """
    if status["state"] == "outdated":
        raise RelocatorError(str(status["error"]))
    if status["state"] in ALL_HERE:
        return None
    lost = status["role"] == "proxy" and not status["source_connected"]
    why = (_WAITS_FOR.get(status["state"]), lost and "source not connected", status["error"])
    return "; ".join(["not complete yet", *filter(None, why)])


def _ready(text: str) -> Callable[[dict[str, Any]], str | None]:
    """The same for a switch that would leave `text` at most: a size, or seconds.

    Raises:
        ConfigError: it is neither.
    """
    wanted = re.fullmatch(r"(\d+(?:\.\d+)?)s|\d+[kmgt]?(?:i?b)?", text.strip().lower())
    if wanted is None:
        raise ConfigError(f"--ready={text}: write a size such as 64M, or seconds such as 2s")
    field, most = ("behind_s", float(wanted[1])) if wanted[1] else ("behind_bytes", 0.0)
    if field == "behind_bytes":
        most = words.size("--ready", text)

    def missing(status: dict[str, Any]) -> str | None:
        if status["state"] != "standby":
            raise RelocatorError(f"--ready: the disk is {status['state']}, not in standby")
        if status["source_offers"] == "blocks":
            raise RelocatorError("--ready: needs a source that is a relocator, or --source-bitmap")
        if status["refresh_s"] is None:
            raise RelocatorError(
                "--ready: refresh is off; give it with `relocator set CONTROL refresh=5`"
            )
        if status["background"] != "on":
            raise RelocatorError(f"--ready: the background copy is {status['background']}")
        if (trouble := status["faults"]["handover"]) is not None:
            return str(trouble)
        behind = status[field]
        if behind is not None and behind <= most:
            return None
        why = "not all was copied ahead yet" if behind is None else behind_text(status)
        trouble = status["faults"]["copy"]
        return why if trouble is None else f"{why}; {trouble}"

    return missing
