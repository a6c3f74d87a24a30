"""`relocator doctor`: what this host can and can't do, and what to install.

`relocator doctor --move`: whether a move would succeed, and how long it would take.
"""

import argparse
import json
from pathlib import Path

from rich.table import Table

from relocator.cli import common, host, moves
from relocator.cli.common import Commands, human_time
from relocator.errors import ConfigError
from relocator.source.key import read as read_key

_DESCRIPTION = (
    "What this host can and can't do, and what to install. With --move: whether a move would "
    "succeed, and how long it would take; nothing is changed."
)
#: where the documentation has it
KEY = Path("/etc/relocator/key")
#: Without these the product itself doesn't run; the rest is for the test bed.
_ESSENTIAL = ("nbdkit", "nbdkit's python plugin", "python module nbd")


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "doctor", help="say what this host can do", description=_DESCRIPTION
    )
    parser.add_argument(
        "--move",
        action="store_true",
        help="look at both ends of a move instead, given as to `relocator migrate`; measures the "
        "way to each disk's source for some seconds",
    )
    moves.add_parties(parser)
    parser.add_argument("--json", action="store_true", help="with --move: print it as JSON")
    parser.set_defaults(run=_run)


def _move(options: argparse.Namespace) -> int:
    """What stands in the way of a move."""
    from relocator.moving.preflight import preflight

    moves.check_parties(options)
    with moves.parties(options) as parties:
        found = preflight(parties)
    if options.json:
        checks = [vars(check) for check in found.checks]
        fields = {"ok": found.ok, "checks": checks, "estimate": vars(found.estimate)}
        print(json.dumps(fields, indent=1))
        return 0 if found.ok else 1
    console = common.console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    marks = {True: "[green]yes[/green]", False: "[red]no[/red]", None: "[yellow]note[/yellow]"}
    for check in found.checks:
        table.add_row(marks[check.ok], check.about, check.found)
    console.print(table)
    time = found.estimate
    if time.expected_s is not None:
        span = f"{human_time(time.least_s)} to {human_time(time.most_s)}"
        console.print(f"\nThe move would take {human_time(time.expected_s)} ({span}).")
    console.print("Nothing stands in the way." if found.ok else "It can't begin like this.")
    return 0 if found.ok else 1


def _run(options: argparse.Namespace) -> int:
    if options.move:
        return _move(options)
    console = common.console()
    facts = host.survey()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for fact in facts:
        mark = "[green]yes[/green]" if fact.ok else "[yellow]no[/yellow]"
        table.add_row(mark, fact.name, fact.detail)
    console.print(table)
    for remedy in dict.fromkeys(fact.remedy for fact in facts if not fact.ok and fact.remedy):
        names = ", ".join(fact.name for fact in facts if fact.remedy == remedy and not fact.ok)
        console.print(f"\n{names}: would come with {remedy}", soft_wrap=True)
    if old := _old_nbdkit(facts):
        console.print(f"\n{old}", soft_wrap=True)
    console.print(f"\n{_key()}", soft_wrap=True)
    console.print(f"\nTest bed: {_where()}")
    missing = [fact for fact in facts if fact.name in _ESSENTIAL and not fact.ok]
    verdict = "can" if not missing else "can't"
    console.print(f"This host {verdict} serve and relocate disks.")
    return 1 if missing else 0


def _old_nbdkit(facts: list[host.Fact]) -> str | None:
    """A warning about a defect of nbdkit that an operator should know of."""
    found = next((fact.detail for fact in facts if fact.name == "nbdkit" and fact.ok), "")
    parts = found.split(".")
    if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    if (int(parts[0]), int(parts[1])) >= (1, 34):
        return None
    return (
        f"nbdkit {found} can abort when a client hangs up while several threads owe it replies: "
        "run targets with --threads 1 (the default) and let a service manager restart proxies."
    )


def _key() -> str:
    """Whether there is a key where one is looked for first."""
    try:
        read_key("--key", KEY)
    except ConfigError as error:
        return (
            f"No key in {KEY}: a target or proxy that other machines can reach needs one, or no "
            f"disk can move from it ({error})"
        )
    return f"There is a key in {KEY}: give --key {KEY} to targets and proxies of both sites."


def _where() -> str:
    """Where test-bed programs would run, and why."""
    obstacles = host.native_obstacles()
    if not obstacles:
        return "runs natively: root, and a kernel with netem, nbd and device-mapper"
    in_vm = host.vm_obstacles()
    if not in_vm:
        return f"runs in a throwaway virtual machine, because {'; '.join(obstacles)}"
    return f"can't run here: natively {'; '.join(obstacles)}; in a virtual machine {in_vm[0]}"
