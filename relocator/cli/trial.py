"""`relocator try`: throwaway copies of disks in standby, to boot a guest from before it moves."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from relocator import signals
from relocator.cli.common import Commands
from relocator.cli.movepage import say
from relocator.client import Client
from relocator.config import parse_seconds
from relocator.errors import ConfigError
from relocator.moving import guard, still
from relocator.moving.address import parse
from relocator.moving.ends import Disk, NoSource
from relocator.moving.monitor import Monitor
from relocator.moving.reach import reaching
from relocator.moving.trial import STILL_S, Guest, Trial, caught_up, copy_on

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
    parser.add_argument(
        "--still",
        metavar="S",
        help="with --from: the most that the guest may stand still; then it goes on, and the trial "
        "has failed (30)",
    )
    parser.add_argument("--when-killed", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
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
    if options.when_killed:
        return _guard(options, disks)
    for number in signals.ending() - {signal.SIGINT}:
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as ends:
        guest = ends.enter_context(_guest(options))
        watcher = guard.Guard(_words(options), ["try"])
        epochs = ends.enter_context(caught_up(disks, guest, timeout_s, watcher))
        if guest is not None:
            guest.monitor.close()  # QEMU speaks with one client at a time
        trial = Trial(disks, directory)
        with trial.served():
            for disk, epoch in zip(disks, epochs, strict=True):
                print(f"disk {disk.name}: epoch {epoch} at {trial.socket(disk)}", flush=True)
            trial.watch()
    return 0


@contextmanager
def _guest(options: argparse.Namespace) -> Iterator[Guest | None]:
    """The guest that is stopped for the last blocks, if one is."""
    still_s = STILL_S if options.still is None else parse_seconds("--still", options.still)
    if options.source is None:
        if options.still is not None:
            raise ConfigError(
                f"--still={options.still}: goes with --from, the guest that is stopped"
            )
        yield None
        return
    words = [*_words(options), "--from", options.source]
    with _monitor(options.source) as monitor:
        yield Guest(monitor, guard.Guard(words, ["try"]), still_s)


def _words(options: argparse.Namespace) -> list[str]:
    return [*options.controls, "--directory", options.directory]


def _guard(options: argparse.Namespace, disks: list[Disk]) -> int:
    """Wait, and if the command was killed, let the guest go on, or without `--from` the copy.

    They are two: the guest stands still for a moment only, and may be stopped by others after it.
    """
    if not guard.killed():
        return 0
    if options.source is None:
        copy_on(disks)
    else:
        with _monitor(options.source) as monitor:
            still.go_on(monitor, still.GUARD_S)
    what = "background copy" if options.source is None else "guest"
    say(f"relocator try has ended; its guard has let the {what} go on", sys.stderr)
    return 0


@contextmanager
def _monitor(address: str) -> Iterator[Monitor]:
    with reaching() as reach:
        with closing(Monitor("the guest's QEMU", parse("--from", address), reach)) as monitor:
            yield monitor
