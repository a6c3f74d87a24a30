"""What several commands share."""

import argparse
import time
from typing import Any

# argparse doesn't export the type of what add_subparsers returns.
Commands = Any
_WIDE = 1000


def add_control(parser: argparse.ArgumentParser) -> None:
    """The positional argument CONTROL."""
    parser.add_argument("control", metavar="CONTROL", help="the plugin's control socket")


def console() -> Any:
    """A rich console; what goes into a pipe or a file is not squeezed to a terminal's width."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=_WIDE)


def human_bytes(count: float) -> str:
    """A size such as `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_rate(bits_per_s: float) -> str:
    """A rate such as `95.2 Mbit/s`."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits_per_s < 1000:
            return f"{bits_per_s:.1f} {unit}"
        bits_per_s /= 1000
    return f"{bits_per_s:.2f} Gbit/s"


def human_clock(at_s: float) -> str:
    """A moment by the local clock: `07:00`, or, a day away, `2026-01-31 07:00`."""
    near = abs(at_s - time.time()) < 86400
    return time.strftime("%H:%M" if near else "%Y-%m-%d %H:%M", time.localtime(at_s))


def human_time(seconds: float | None) -> str:
    """A duration such as `1:02:03`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
