"""`relocator pause`, `resume`, `set`, `seal` and more: change what a plugin does."""

import argparse
from typing import Any

from relocator.cli.common import Commands, add_control
from relocator.client import Client
from relocator.errors import ConfigError, RelocatorError

_VERBS = {
    "pause": "pause the background copy",
    "resume": "go on with the background copy",
    "seal": "let no write pass from here on: the disk moves to another site",
    "reserve": "allocate the whole image, so that nothing else takes its room",
    "refresh": "in standby, copy again what was written at the source since",
}

_VERIFY = "compare what was fetched with the source, by digests; status 1 while blocks are absent"
_FLUSH = "make all acknowledged writes durable"
_UNSEAL = (
    "Undo a seal: writes pass here again. Refused where another site asked for the seal, for the "
    "VM may have written there since: there, `relocator withdraw` gives the disk back. With "
    "--force it is done nevertheless: what was written there is lost, and should that site come "
    "back, it refuses to go on."
)
#: fields of an answer that the user wants to see
_TOLD = tuple(
    f"{kind}_blocks" for kind in ("refreshed", "verified", "skipped", "unverified", "absent")
)


def add(commands: Commands) -> None:
    """Add the commands' parsers."""
    for verb, text in _VERBS.items():
        parser = commands.add_parser(verb, help=text, description=f"{text.capitalize()}.")
        add_control(parser)
        parser.set_defaults(run=_run_verb, verb=verb)
    parser = commands.add_parser("verify", help=_VERIFY, description=f"{_VERIFY.capitalize()}.")
    add_control(parser)
    parser.set_defaults(run=_run_verify)
    parser = commands.add_parser("flush", help=_FLUSH, description=f"{_FLUSH.capitalize()}.")
    add_control(parser)
    parser.add_argument(
        "--last",
        action="store_true",
        help="writes to a disk that is all here wait from here on: the server is killed next",
    )
    parser.set_defaults(run=_run_flush)
    parser = commands.add_parser("unseal", help="undo a seal", description=_UNSEAL)
    add_control(parser)
    parser.add_argument(
        "--force", action="store_true", help="although a proxy may have accepted writes since"
    )
    parser.set_defaults(run=_run_unseal)
    parser = commands.add_parser(
        "set",
        help="change rate, deadline, window, order, background or refresh",
        description="Change settings of a running proxy; all of them or, if one is wrong, none.",
    )
    add_control(parser)
    parser.add_argument(
        "settings",
        metavar="KEY=VALUE",
        nargs="+",
        help="rate=BITS/S|none|TIMETABLE, finish-by=TIME|none, window=BYTES|auto, order=LIST, "
        "background=on|off, refresh=S|off",
    )
    parser.set_defaults(run=_run_set)


def _run_verb(options: argparse.Namespace) -> int:
    _tell(Client(options.control).call(options.verb, patience_s=None))
    return 0


def _tell(answer: dict[str, Any]) -> None:
    for name in _TOLD:
        if name in answer:
            print(f"{name.replace('_', ' ')}: {answer[name]:,}")


def _run_verify(options: argparse.Namespace) -> int:
    answer = Client(options.control).call("verify", patience_s=None)
    _tell(answer)
    lacking = answer["total_blocks"] - answer["present_blocks"]
    if absent := answer.get("absent_blocks", lacking):  # an older version's server doesn't say
        raise RelocatorError(
            f"{absent:,} of {answer['total_blocks']:,} blocks are absent: only the source has "
            f"them, so it must go on. `relocator wait {options.control}` returns when all are "
            "here; then verify again"
        )
    return 0


def _run_flush(options: argparse.Namespace) -> int:
    last = {"last": True} if options.last else {}  # which a server of an older version doesn't know
    Client(options.control).call("flush", patience_s=None, **last)
    return 0


def _run_unseal(options: argparse.Namespace) -> int:
    told = Client(options.control).call("unseal", patience_s=None, force=options.force)
    if told["was_asked"]:
        active = "was active:" if told["was_moved"] else "may have been active; if so,"
        print(
            f"unsealed by force. The proxy that had asked for the seal {active} what was written "
            "there since is not on this disk. End the VM there, if it runs: its disk becomes "
            "outdated when it next hears from here, which one that is complete may never do."
        )
    return 0


def _run_set(options: argparse.Namespace) -> int:
    pairs: dict[str, Any] = {}
    for setting in options.settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting}: not KEY=VALUE; write for example rate=50M")
        pairs[key] = value
    Client(options.control).call("set", **pairs)
    return 0
