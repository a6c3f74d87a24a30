"""`relocator COMMAND`: the parser put together, and errors turned into exit statuses.

Status 0: done. 1: it failed, with one line that says why. 2: the command line is wrong.
130: interrupted.
"""

import argparse
import sys
from collections.abc import Sequence

from relocator import __version__
from relocator.cli import completion, doctor, metrics, serve, status, steer, wait
from relocator.errors import ConfigError, RelocatorError

_COMMANDS = (serve, status, steer, wait, metrics, doctor, completion)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; also what the documentation is made from."""
    parser = argparse.ArgumentParser(
        prog="relocator",
        description="Moves a virtual machine's disk to another site while the VM keeps running.",
    )
    parser.add_argument("--version", action="version", version=f"relocator {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ConfigError as error:
        print(f"relocator: {error}", file=sys.stderr)
        return 2
    except RelocatorError as error:
        print(f"relocator: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
