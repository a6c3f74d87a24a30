"""`relocator plugin-path`: where the plugin is, for who starts nbdkit without this command."""

import argparse
from pathlib import Path

from relocator.cli.common import Commands

PLUGIN = Path(__file__).resolve().parent.parent / "plugin.py"


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "plugin-path",
        help="print the path of the nbdkit plugin",
        description="Print the path of the nbdkit plugin: "
        "`nbdkit python $(relocator plugin-path) KEY=VALUE...` starts it without this command.",
    )
    parser.set_defaults(run=_run)


def _run(_options: argparse.Namespace) -> int:
    print(PLUGIN)
    return 0
