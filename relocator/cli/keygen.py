"""`relocator keygen`: a new secret for `--key`."""

import argparse
from pathlib import Path

from relocator.cli.common import Commands
from relocator.source import key

_ABOUT = (
    "Write a new secret to PATH, for its owner only. Copy the file to the other site, by a way "
    "that keeps it secret (scp -p), and give it to the servers of both, with --key PATH: then who "
    "doesn't have it can't seal a disk."
)


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser("keygen", help="make a key for both sites", description=_ABOUT)
    parser.add_argument("path", metavar="PATH", help="a file that doesn't exist yet")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    key.make(Path(options.path))
    return 0
