"""What names a move on a command line: both QEMUs, and both ends of each disk."""

import argparse
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from relocator.errors import ConfigError
from relocator.moving.address import parse
from relocator.moving.agent import Agent, parse_agents
from relocator.moving.ends import open_disk, parse_disk
from relocator.moving.freezing import Freeze
from relocator.moving.monitor import Monitor
from relocator.moving.parties import Parties
from relocator.moving.reach import Reach, reaching
from relocator.source.key import read as read_key

_ADDRESS = "PATH, HOST:PORT or ssh://[USER@]HOST[:PORT]/PATH"


def add_parties(parser: argparse.ArgumentParser) -> None:
    """The arguments that say who moves."""
    parser.add_argument(
        "--from", dest="source", metavar="QMP", help=f"QMP socket of the guest's QEMU: {_ADDRESS}"
    )
    parser.add_argument(
        "--to",
        dest="destination",
        metavar="QMP",
        help="QMP socket of the QEMU that waits for the guest (-incoming defer)",
    )
    parser.add_argument(
        "--uri", metavar="URI", help="where the guest's memory is sent, such as tcp:10.2.0.2:4444"
    )
    parser.add_argument(
        "--disk",
        dest="disks",
        metavar="SOURCE,DEST",
        action="append",
        default=[],
        help="a disk: control sockets of its target and its proxy (PATH or ssh://...); SOURCE may "
        "be the target's NBD URI. Once for each disk of the guest",
    )

    parser.add_argument(
        "--freeze",
        metavar="SOURCE,DEST",
        help="freeze the guest's file systems around the seal: sockets of its qemu-guest-agent's "
        "port at both QEMUs",
    )
    parser.add_argument(
        "--key", metavar="PATH", help="the key of targets that are given as NBD URIs"
    )
    parser.add_argument(
        "--ssh-options",
        metavar="WORDS",
        default="",
        help="further options for ssh, quoted as for a shell; for addresses that begin with ssh://",
    )


def check_parties(options: argparse.Namespace) -> None:
    """All are named, and each can be understood.

    Raises:
        ConfigError: one is not.
    """
    for name, given in (
        ("--from=QMP", options.source),
        ("--to=QMP", options.destination),
        ("--uri=URI", options.uri),
        ("--disk=SOURCE,DEST", options.disks),
    ):
        if not given:
            raise ConfigError(f"{name.partition('=')[0]}: is missing; give {name}")
    if ":" not in options.uri:
        raise ConfigError(f"--uri={options.uri}: write tcp:HOST:PORT or unix:PATH")
    for text in options.disks:
        parse_disk(text)
    if len(set(options.disks)) < len(options.disks):
        raise ConfigError("--disk: the same disk is given twice")
    parse("--from", options.source)
    parse("--to", options.destination)
    if options.freeze is not None:
        parse_agents("--freeze", options.freeze)


@contextmanager
def parties(options: argparse.Namespace) -> Iterator[Parties]:
    """Both QEMUs and the disks, reached through ssh where they are named so."""
    try:
        words = shlex.split(options.ssh_options)
    except ValueError as error:
        raise ConfigError(f"--ssh-options={options.ssh_options}: {error}") from error
    with ExitStack() as ends:
        reach = ends.enter_context(reaching(words))
        source = Monitor("the source's QEMU", parse("--from", options.source), reach)
        ends.callback(source.close)
        there = Monitor("the destination's QEMU", parse("--to", options.destination), reach)
        ends.callback(there.close)
        key = None if options.key is None else read_key("--key", Path(options.key))
        disks = [open_disk(text, reach, at, key) for at, text in enumerate(options.disks)]
        for number, disk in enumerate(disks):  # messages and reports tell them apart
            if disk.name in [one.name for one in disks[:number]]:
                disk.name = f"{disk.name}-{number + 1}"
        made = Parties(source, there, disks)
        if options.freeze is not None:
            made.freeze = _freeze(options.freeze, source, there, reach)
            ends.callback(made.freeze.close)
        yield made


def _freeze(text: str, source: Monitor, destination: Monitor, reach: Reach) -> Freeze:
    here, there = parse_agents("--freeze", text)
    agents = Agent("the source", here, reach), Agent("the destination", there, reach)
    return Freeze(source, destination, *agents)
