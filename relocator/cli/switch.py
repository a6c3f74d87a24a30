"""`relocator activate`, `release`, `withdraw`: the disks of a VM change site, all or none.

While a VM stands still each millisecond counts: one disk needs no more imports than its socket's.
"""

import argparse
from typing import Any

from relocator.cli.common import Commands
from relocator.client import Client
from relocator.errors import ConfigError, RelocatorError

_ACTIVATE = (
    "Take the disks of a VM over. The VM may go on at this site once the command returns: at once "
    "with one disk, with several when all sources are sealed. Its reads work, its writes wait "
    "until then. Disks that were taken over before stay as they are."
)
_RELEASE = "End a hold: the VM runs here, so its writes pass as soon as all sources are sealed."
_WITHDRAW = "Give the disks back to their sources. Refused once the VM has written here."


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
    if len(disks) == 1:
        told = disks[0].call("activate", patience_s=None, hold=options.hold, wait=options.wait)
        already = disks if told.get("already_active") else []
    else:
        from relocator import group

        already = group.activate(disks)
        if not options.hold:
            group.release(disks)
    for disk in already:
        print(f"{disk.path}: is active already")
    return 0


def _release(options: argparse.Namespace) -> int:
    from relocator import group

    group.release(_disks(options))
    return 0


def _withdraw(options: argparse.Namespace) -> int:
    from relocator import group

    failures = group.withdraw(_disks(options))
    if failures:
        raise RelocatorError("; ".join(str(failure) for failure in failures))
    return 0


def _disks(options: argparse.Namespace) -> list[Any]:
    return [Client(path) for path in options.controls]
