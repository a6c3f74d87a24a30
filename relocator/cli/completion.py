"""`relocator completion bash|zsh`: a script that completes commands, options and paths.

The script is made from the parser, so it knows what the parser knows. Which arguments are paths is
told by their metavar.
"""

import argparse
from collections.abc import Iterator

from relocator.cli.common import Commands
from relocator.cli.parser import build_parser
from relocator.errors import RelocatorError

_FILES = ("CONTROL", "DISK", "PATH", "PIDFILE", "FILE")
_DIRECTORIES = ("STORE", "DIR")


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "completion",
        help="print a completion script for a shell",
        description="Print a script that completes this command's arguments in a shell.",
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell to print it for")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError as error:
        raise RelocatorError(
            "completion needs the Python package shtab: pip install shtab"
        ) from error
    parser = build_parser()
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
