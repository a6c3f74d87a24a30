"""`relocator migrate`: a running QEMU guest moves with its disks, by one command."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from relocator import signals, words
from relocator.cli import moves
from relocator.cli.common import Commands
from relocator.cli.movepage import Page, say, summary
from relocator.client import Client
from relocator.errors import ConfigError, RelocatorError
from relocator.moving import guard
from relocator.moving.ahead import Ahead, Conditions, parse_window
from relocator.moving.move import Move
from relocator.moving.parties import MoveError, Parties, Plan
from relocator.moving.stages import Stage
from relocator.moving.still import GUARD_S
from relocator.moving.telling import Hooks, Progress, Report

_DESCRIPTION = (
    "Move a running QEMU guest, memory and disks, to a QEMU that waits for it. Run again after any "
    "interruption, it goes on from what it finds. If anything fails, or with Ctrl-C, before the "
    "disks are released, the guest goes on at the source; after that it is at the destination."
)
_LONGEST_LIMIT_MS = 2_000_000
_AGAIN_S = 3.0


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "migrate", help="move a running QEMU guest with its disks", description=_DESCRIPTION
    )
    moves.add_parties(parser)
    parser.add_argument(
        "--incoming", metavar="URI", help="where the waiting QEMU listens, if not at --uri"
    )
    parser.add_argument("--bandwidth", metavar="BITS/S", help="cap of the memory's transfer")
    parser.add_argument(
        "--downtime-limit", metavar="MS", help="longest pause that QEMU aims at (300)"
    )
    parser.add_argument("--multifd", metavar="N", help="send memory over N connections")
    parser.add_argument(
        "--pre-seed",
        action="store_true",
        help="begin only when all of the disks has been copied ahead",
    )
    parser.add_argument(
        "--hold",
        metavar="SOCKET",
        help="copy ahead, keep in step, and wait for --go; without end",
    )
    parser.add_argument("--go", metavar="SOCKET", help="let the move that waits there begin")
    parser.add_argument(
        "--window",
        metavar="FROM-TO",
        help="copy ahead, and begin between two times of the day, such as 02:00-04:00",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="let the guest go on only once every source is sealed (a round trip of pause more; "
        "after 30 s the move fails)",
    )
    parser.add_argument("--no-verify", action="store_true", help="don't compare with the source")
    parser.add_argument(
        "--quit-source", action="store_true", help="end the source's QEMU when all is done"
    )
    parser.add_argument(
        "--settle",
        action="store_true",
        help="end an interrupted move and begin none: back, or forward once the guest has arrived",
    )
    parser.add_argument(
        "--lost",
        action="append",
        choices=("source", "destination"),
        default=[],
        help="to end an interrupted move: it is certain that the guest doesn't run at this site, "
        "though it can't be asked",
    )
    parser.add_argument("--json", action="store_true", help="print stages and the report as JSON")
    # For the guard, and for tests that interrupt a move at a certain place.
    parser.add_argument("--when-killed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--limits-before", type=json.loads, default={}, help=argparse.SUPPRESS)
    parser.add_argument("--stop-at", metavar="PLACE", help=argparse.SUPPRESS)
    parser.set_defaults(run=_run)


def _plan(options: argparse.Namespace) -> Plan:
    rate = None if options.bandwidth is None else words.rate("--bandwidth", options.bandwidth)
    return Plan(
        uri=options.uri,
        incoming=options.incoming or options.uri,
        bandwidth_bytes_per_s=None if rate is None else int(rate / 8),
        downtime_limit_ms=_number("--downtime-limit", options.downtime_limit, _LONGEST_LIMIT_MS),
        multifd_channels=_number("--multifd", options.multifd, 255) or 0,
        verify=not options.no_verify,
        quit_source=options.quit_source,
        wait_for_seal=options.wait,
        lost=frozenset(options.lost),
    )


def _number(option: str, text: str | None, most: int) -> int | None:
    if text is None:
        return None
    number = words.whole(text)
    if number is None or not 1 <= number <= most:
        raise ConfigError(f"{option}={text}: must be a number from 1 to {most}")
    return number


def _conditions(options: argparse.Namespace) -> Conditions:
    return Conditions(
        pre_seed=options.pre_seed,
        hold=None if options.hold is None else Path(options.hold),
        window=None if options.window is None else parse_window("--window", options.window),
    )


def _run(options: argparse.Namespace) -> int:
    if options.go is not None:
        server = "`relocator migrate --hold` with this socket"
        Client(options.go, f"--go={options.go}", server).call("go")
        return 0
    moves.check_parties(options)
    plan, conditions = _plan(options), _conditions(options)
    if options.when_killed and not guard.killed():
        return 0
    if options.settle:
        return _settle(options, plan)
    with moves.parties(options) as parties:
        signals.interrupt()
        watcher = guard.Guard(_arguments(options))
        with Page([disk.name for disk in parties.disks], as_json=options.json) as page:
            hooks = Hooks(
                tell=page.tell,
                ahead=Ahead(
                    parties.disks,
                    conditions,
                    lambda disks, why: page.tell(Progress(Stage.HOME, None, disks, why)),
                ),
                watch=lambda: watcher.watch(*_limits(parties)),
                at_rest=watcher.at_rest,
                seam=_seam(options.stop_at),
            )
            try:
                report = Move(parties, plan, hooks).run()
            except MoveError as error:
                return _failed(error, options, guarded=watcher.watches)
        _print(report, options)
    return 0


def _settle(options: argparse.Namespace, plan: Plan) -> int:
    """What was begun is ended; only then it is said where the guest is.

    The guard tries again for long: what can't be reached may have a guest that stands still.
    """
    give_up_s = time.monotonic() + (GUARD_S if options.when_killed else 0.0)
    was_home = False
    while True:
        try:
            with moves.parties(options) as parties:
                parties.limits_before = options.limits_before
                parties.was_home = was_home
                parties.guarded = options.when_killed
                try:
                    text = Move(parties, plan).settle()
                finally:
                    was_home = parties.was_home
        except RelocatorError as error:
            if (getattr(error, "again", True)) and time.monotonic() < give_up_s:
                time.sleep(_AGAIN_S)
                continue
            _say_who(options)
            if isinstance(error, MoveError):
                return _failed(error, options)
            raise
        _say_who(options)
        say(json.dumps({"settled": text}) if options.json else text, sys.stdout)
        return 0


def _say_who(options: argparse.Namespace) -> None:
    if options.when_killed:
        say("relocator migrate ended in the midst of it; its guard looked after it", sys.stderr)


def _failed(error: MoveError, options: argparse.Namespace, *, guarded: bool = False) -> int:
    if options.json:
        say(json.dumps({"error": error.why, "what_now": error.verdict}), sys.stdout)
    say(f"relocator: {error.why}\n{error.verdict}", sys.stderr)
    if error.again and guarded:
        say(f"Its guard goes on trying to settle that, for {GUARD_S / 60:.0f} minutes.", sys.stderr)
    return 130 if error.why == "interrupted" else 1


def _print(report: Report, options: argparse.Namespace) -> None:
    if options.json:
        fields = {
            "downtime": report.downtime.fields(),
            "memory": report.memory,
            "disks": report.disks,
            "notes": report.notes,
        }
        say(json.dumps({"report": fields}, sort_keys=True), sys.stdout)
        return
    for line in summary(report):
        say(line, sys.stdout)


def _arguments(options: argparse.Namespace) -> list[str]:
    """The arguments that name the parties, for the guard."""
    words = ["--from", options.source, "--to", options.destination, "--uri", options.uri]
    for disk in options.disks:
        words += ["--disk", disk]
    for site in options.lost:
        words += ["--lost", site]
    if options.freeze is not None:
        words += ["--freeze", options.freeze]
    if options.key is not None:
        words += ["--key", options.key]
    if options.ssh_options:
        words += [f"--ssh-options={options.ssh_options}"]
    return words


def _limits(parties: Parties) -> list[str]:
    """What the guard is told of the source's QEMU, to leave it so."""
    return ["--limits-before", json.dumps(parties.limits_before)]


def _seam(place: str | None) -> Callable[[str], None]:
    """Stops at `place` until a line comes in, so that something can be broken just then."""

    def stop(here: str) -> None:
        if here == place:
            print(f"stopped at {here}", file=sys.stderr, flush=True)
            sys.stdin.readline()

    return stop
