"""`relocator activate`, `release`, `withdraw`: the disks of a VM change site, all or none.

While a VM stands still each millisecond counts: one disk needs no more imports than its socket's,
and the signals'.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from relocator.cli.common import Commands
from relocator.client import Client
from relocator.errors import ConfigError, RelocatorError

#: how long an interrupted command waits for a disk that goes back, and then for its status
_BACK_S, _LOOK_S = 30.0, 5.0
_HELD = (
    "it may be held: once it answers, `relocator release {0}` goes on, `relocator withdraw {0}` "
    "gives it back"
)
_GOES_ON = "it may go on by itself once it is started again; `relocator withdraw {0}` gives it back"
_ACTIVATE = (
    "Take the disks of a VM over. The VM may go on at this site once the command returns: at once "
    "with one disk, with several when all sources are sealed. Its reads work, its writes wait "
    "until then. Disks that were taken over before stay as they are."
)
_RELEASE = "End a hold: the VM runs here, so its writes pass as soon as all sources are sealed."
_WITHDRAW = (
    "Give the disks back to their sources, all or none. Refused once the VM has written here, to "
    "whichever of them."
)


def add(commands: Commands) -> None:
    """Add the three commands' parsers."""
    for verb, text, run in (
        ("activate", _ACTIVATE, _activate),
        ("release", _RELEASE, _release),
        ("withdraw", _WITHDRAW, _withdraw),
    ):
        parser = commands.add_parser(
            verb, help=text[0].lower() + text[1:].partition(".")[0], description=text
        )
        parser.add_argument(
            "controls", metavar="CONTROL", nargs="+", help="the control socket of each disk"
        )
        parser.set_defaults(run=run)
        if verb == "activate":
            parser.add_argument(
                "--hold",
                action="store_true",
                help="return at once; writes wait for `relocator release` too",
            )
            parser.add_argument(
                "--wait", action="store_true", help="return only when writes pass, or would"
            )


def _activate(options: argparse.Namespace) -> int:
    disks = _disks(options)
    if options.wait and options.hold and len(disks) > 1:
        raise ConfigError("--wait: with --hold and several disks it is `release` that waits")
    held = options.hold or options.wait or len(disks) > 1
    with _all_or_none(disks), _left_is_said(disks, held=held):
        if len(disks) == 1 and not options.wait:
            told = disks[0].call("activate", patience_s=None, hold=options.hold)
            already = disks if told.get("already_active") else []
        else:
            already = _activate_all(disks, hold=options.hold)
    for disk in already:
        print(f"{disk.path}: is active already")
    return 0


def _activate_all(disks: list[Any], *, hold: bool) -> list[Any]:
    """Those that were active already. One by itself is waited for, and held until it is sealed."""
    from relocator import group
    from relocator.signals import uninterrupted

    if len(disks) > 1:
        already = group.activate(disks)
        if not hold:
            group.release(disks, may_run_here=False)
        return already
    told = disks[0].call("activate", patience_s=None, hold=True, wait=True)
    if not hold:
        with uninterrupted():
            disks[0].call("release")
        disks[0].call("activate", patience_s=None, wait=True)
    return disks if told.get("already_active") else []


def _release(options: argparse.Namespace) -> int:
    from relocator import group

    disks = _disks(options)
    with _all_or_none(disks):
        group.release(disks)
    return 0


def _withdraw(options: argparse.Namespace) -> int:
    from relocator import group
    from relocator.signals import uninterrupted

    disks = _disks(options)
    with uninterrupted() if len(disks) > 1 else nullcontext():
        failures = group.withdraw(disks)
    refused = [failure for failure in failures if failure is not None]
    if not refused:
        return 0
    if len(disks) == 1:
        raise refused[0]
    for disk, failure in zip(disks, failures, strict=True):
        again = "" if failure else f"; `relocator activate {disk.path}` takes it over again"
        print(f"{disk.path}: {_where(disk, failure)}{again}", file=sys.stderr)
    raise RelocatorError("not all disks are back at their sources")


@contextmanager
def _all_or_none(disks: list[Any]) -> Iterator[None]:
    """If interrupted, gives back what is held by then, and says of each disk where it is."""
    from relocator import signals

    with signals.interrupting():
        try:
            yield
        except KeyboardInterrupt:
            with signals.uninterrupted():
                from relocator import group
                from relocator.cli.movepage import say

                say("relocator: interrupted; what is held is given back", sys.stderr)
                for disk, failure in zip(disks, group.give_up(disks, _BACK_S), strict=True):
                    say(f"{disk.path}: {_where(disk, failure)}", sys.stderr)
            raise


@contextmanager
def _left_is_said(disks: list[Any], *, held: bool) -> Iterator[None]:
    """If it fails, says which disks are not at their sources, as far as is known; `held` by it."""
    try:
        yield
    except RelocatorError:
        for disk in disks:
            try:
                status = disk.call("status", _LOOK_S)
            except RelocatorError:
                left = f"not known; {_HELD if held else _GOES_ON}".format(disk.path)
                print(f"{disk.path}: {left}", file=sys.stderr)
            else:
                if status["held"]:
                    print(f"{disk.path}: {_where(disk, None)}", file=sys.stderr)
        raise


def _where(disk: Any, failure: RelocatorError | None) -> str:
    """Whose a disk is after an interruption, and which command goes on."""
    why = "" if failure is None else f" ({failure})"
    back = f"`relocator withdraw {disk.path}` gives it back"
    try:
        status = disk.call("status", _LOOK_S)
    except RelocatorError as error:
        return f"not known: {failure or error}; once it answers, {back}"
    if status["state"] == "standby":
        return f"standby, it is at its source{why}"
    if status["held"]:
        return f"activating, its writes wait{why}; {back}, `relocator release` goes on"
    if status["state"] == "activating":
        return f"activating, nothing holds it: it goes on by itself; {back}"
    return f"{status['state']}, it was taken over{why}"


def _disks(options: argparse.Namespace) -> list[Any]:
    return [Client(path) for path in options.controls]
