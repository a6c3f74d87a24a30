"""The command line as a parser, put together from the commands' own modules.

A command's module is imported only when it is needed: while a VM stands still between two sites,
`relocator activate` must not wait for the imports of all the others.
"""

import argparse
import os
from importlib import import_module

from relocator import __version__

#: command -> the module that adds its parser (and perhaps others' parsers too)
COMMANDS = {
    "target": "serve",
    "proxy": "serve",
    "status": "status",
    "pause": "steer",
    "resume": "steer",
    "flush": "steer",
    "activate": "switch",
    "release": "switch",
    "withdraw": "switch",
    "seal": "steer",
    "unseal": "steer",
    "verify": "steer",
    "reserve": "steer",
    "refresh": "steer",
    "set": "steer",
    "wait": "wait",
    "migrate": "migrate",
    "try": "trial",
    "iscsi": "iscsi",
    "units": "units",
    "libvirt-hook": "libvirt",
    "metrics": "metrics",
    "keygen": "keygen",
    "doctor": "doctor",
    "plugin-path": "plugin_path",
    "completion": "completion",
}


class _Parser(argparse.ArgumentParser):
    """Knows how wide its help may be; argparse would import shutil, bz2 and lzma to find out."""

    def _get_formatter(self) -> argparse.HelpFormatter:
        try:
            width = int(os.environ.get("COLUMNS") or os.get_terminal_size().columns)
        except (ValueError, OSError):  # no number, or no terminal
            width = 80
        return argparse.HelpFormatter(self.prog, width=width - 2)


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line, or with `only` as much of it as that command needs."""
    parser = _Parser(
        prog="relocator",
        description="Moves a virtual machine's disk to another site while the VM keeps running.",
    )
    parser.add_argument("--version", action="version", version=f"relocator {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    modules = COMMANDS.values() if only is None else [COMMANDS[only]]
    for module in dict.fromkeys(modules):
        import_module(f"relocator.cli.{module}").add(commands)
    return parser
