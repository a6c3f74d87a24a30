"""`relocator status`: what a running target or proxy is doing."""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from relocator.cli.common import (
    Commands,
    add_control,
    console,
    human_bytes,
    human_clock,
    human_rate,
    human_time,
)
from relocator.cli.page import History, Page, behind_text, deadline_text, line, link_text
from relocator.client import Client
from relocator.errors import RelocatorError
from relocator.running.states import ALL_HERE

EVERY_S = 1.0
_PATIENCE_S = 15.0
_MOST_CELLS = 1 << 16
_LEAST_WIDTH = 60


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "status", help="show what a plugin is doing", description=__doc__.partition("`: ")[2]
    )
    add_control(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the status object as JSON")
    how.add_argument(
        "--watch",
        action="store_true",
        help="a live page until all is here; a line a second where there is no terminal",
    )
    parser.set_defaults(run=_run)


def page(status: dict[str, Any]) -> Table:
    """The status as a page for a person."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold")
    if status["role"] == "proxy":
        total, present = status["total_blocks"], status["present_blocks"]
        rows.add_row("", ProgressBar(total=total, completed=present, width=50))
    for name, value in _rows(status):
        rows.add_row(name, Text(value, "red" if name == "last error" else ""))
    return rows


def _rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("role", f"{status['role']}, {status['state']}"),
        ("size", human_bytes(status["size_bytes"])),
    ]
    if status["source"] is not None:
        rows += _of_copy(status)
    rows.append(("written here", f"{status['dirty_blocks']:,} blocks"))
    for kind, seen in status["requests"].items():
        if seen["count"]:
            name = kind.replace("_", " ")
            times = f"p50 {seen['p50_s'] * 1e3:.2f} ms, p99 {seen['p99_s'] * 1e3:.2f} ms"
            rows.append((name, f"{seen['count']:,}: {times}"))
    if status["error"]:
        rows.append(("last error", str(status["error"])))
    return rows


def _of_copy(status: dict[str, Any]) -> list[tuple[str, str]]:
    """What only a disk that comes or came from elsewhere has to tell."""
    present, total = status["present_blocks"], status["total_blocks"]
    share = 100 * present / total if total else 100.0
    background = human_bytes(status["background_bytes"])
    rows = [
        ("source", f"{status['source']} ({link_text(status)})"),
        ("present", f"{share:.1f} % ({present:,} of {total:,} blocks)"),
        ("on-demand copy", human_bytes(status["on_demand_bytes"])),
        ("background copy", f"{background} ({_copying(status)})"),
        ("holes", human_bytes(status["hole_bytes"])),
    ]
    if status["seeding"] != "off":
        taken, digests = human_bytes(status["seeded_bytes"]), human_bytes(status["digest_bytes"])
        rows.append(("from seeds", f"{taken} ({status['seeding']}, for {digests} of digests)"))
    if status["behind_bytes"] is not None:
        rows.append(("in step", behind_text(status)))
    if status["role"] == "proxy":
        told = filter(None, [human_time(status["eta_s"]), deadline_text(status)])
        rows.append(("time left", ", ".join(told)))
    return rows


def _copying(status: dict[str, Any]) -> str:
    if status["background"] != "on":
        return str(status["background"])
    cap = status["rate_cap_bits_per_s"]
    limit = f", capped at {human_rate(cap)}" if cap else ""
    if status["rate_group"]:
        limit += f", one cap for {status['rate_group_members']}"
    if change := status["next_rate_cap"]:
        rate = change["rate_bits_per_s"]
        limit += f"; from {human_clock(change['at_s'])} {human_rate(rate) if rate else 'no cap'}"
    return f"{human_rate(status['rate_bits_per_s'])}{limit}"


def _run(options: argparse.Namespace) -> int:
    client = Client(options.control)
    if options.watch:
        return _watch(client, console(), Path(options.control).name)
    status = client.call("status")
    if options.json:
        print(json.dumps(status, indent=1, sort_keys=True))
    else:
        _show(page(status), console())
    return 0


def _show(rows: Table, screen: Console) -> None:
    """Print a page; without a terminal no line is filled up to the longest one."""
    if screen.is_terminal:
        screen.print(rows)
        return
    with screen.capture() as shown:
        screen.print(rows)
    print("\n".join(text.rstrip() for text in shown.get().splitlines()))


def _watch(client: Client, screen: Console, title: str) -> int:
    """Show a page a second until the disk is complete; the last one stays on the screen."""
    history = History()
    if not screen.is_terminal:
        for status in _samples(client, history):
            print(line(status, history), flush=True)
        return 0
    with Live(console=screen, screen=True, auto_refresh=False) as live:
        last = Group()
        for status in _samples(client, history):
            last = _live_page(client, screen, status, history, title)
            live.update(last, refresh=True)
    screen.print(last)
    return 0


def _samples(client: Client, history: History) -> Iterator[dict[str, Any]]:
    """A status a second, noted in `history`; the last is that of a disk with every block."""
    status = client.call("status")
    while True:
        history.add(time.monotonic(), status)
        yield status
        if status["state"] in ALL_HERE:
            return
        time.sleep(EVERY_S)
        try:
            status = client.call("status", _PATIENCE_S)
        except RelocatorError as error:
            raise RelocatorError(f"the plugin went away: {error}") from error


def _live_page(
    client: Client, screen: Console, status: dict[str, Any], history: History, title: str
) -> Group:
    """The page as large as the terminal is now; its map is asked for in that size."""
    fancy = screen.encoding.startswith("utf")
    live = Page(
        status,
        history,
        title=title,
        width=max(_LEAST_WIDTH, screen.width),
        height=screen.height,
        fancy=fancy,
    )
    cells = min(_MOST_CELLS, live.map_width * live.map_rows)
    answer = client.call("map", _PATIENCE_S, cells=cells)
    return live.render(answer["map"])
