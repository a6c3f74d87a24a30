"""`relocator try`: throwaway copies of disks in standby, to boot a guest from before it moves."""

import argparse
import signal
from contextlib import ExitStack
from pathlib import Path

from relocator.cli.common import Commands
from relocator.config import parse_seconds
from relocator.errors import ConfigError

_DESCRIPTION = (
    "Serve what disks in standby were at one instant, as throwaway copies: whatever is written to "
    "them is gone when this command ends, and the disks themselves are never touched. Run it where "
    "the proxies run. The background copy is paused meanwhile."
)


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "try", help="throwaway copies of disks in standby", description=_DESCRIPTION
    )
    parser.add_argument(
        "controls", metavar="CONTROL", nargs="+", help="control socket of each disk's proxy"
    )
    parser.add_argument(
        "--directory", metavar="DIR", required=True, help="where the copies' sockets, NAME.try, go"
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="QMP",
        help="the guest's QEMU: stop it for the last blocks, if it never stops writing",
    )
    parser.add_argument(
        "--timeout", metavar="S", default="3600", help="give up copying after so long (3600)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from relocator.client import Client
    from relocator.moving.address import parse
    from relocator.moving.ends import Disk, NoSource
    from relocator.moving.monitor import Monitor
    from relocator.moving.reach import reaching
    from relocator.moving.trial import Trial, catch_up

    directory = Path(options.directory)
    if not directory.is_dir():
        raise ConfigError(f"--directory={directory}: is not a directory")
    timeout_s = parse_seconds("--timeout", options.timeout)
    disks = [
        Disk(Path(control).name.partition(".")[0], NoSource(), Client(control))
        for control in options.controls
    ]
    if len({disk.name for disk in disks}) < len(disks):
        raise ConfigError("CONTROL: two sockets have the same name")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as ends:
        guest = None
        if options.source is not None:
            reach = ends.enter_context(reaching())
            guest = Monitor("the source's QEMU", parse("--from", options.source), reach)
            ends.callback(guest.close)
        epochs = catch_up(disks, guest, timeout_s)
        if guest is not None:
            guest.close()  # QEMU speaks with one client at a time
        trial = Trial(disks, directory)
        with trial.served():
            for disk, epoch in zip(disks, epochs, strict=True):
                print(f"disk {disk.name}: epoch {epoch} at {trial.socket(disk)}", flush=True)
            trial.watch()
    return 0
