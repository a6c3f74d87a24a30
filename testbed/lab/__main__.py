"""The lab's command line, `relocator-lab` where it is installed.

python -m testbed.lab run [options] -- MODULE [ARGUMENT...]
python -m testbed.lab shell | build [--force] | info | list
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from testbed import ending
from testbed.discovery import AnnouncementError
from testbed.lab import build, image
from testbed.lab.entry import (
    CLOCKS,
    DEFAULT_MEMORY,
    DEFAULT_SEED,
    DEFAULT_TIMEOUT_S,
    WHERES,
    UsageError,
    choose,
    run,
    say,
    shell,
)
from testbed.lab.image import LabError
from testbed.lab.luggage import Luggage

DEFAULT_OUT = Path("out/lab")


def _info() -> int:
    current = image.current()
    try:
        choice = choose()
        print(f"runs      {choice.where}: {choice.reason}")
    except LabError as error:
        print(f"runs      nowhere: {error}")
    print(f"image     {current.name}")
    print(f"path      {current.directory}")
    if not current.exists():
        print(
            "size      not built yet ('python -m testbed.lab build', or the first run, builds it)"
        )
        return 0
    files = [path for path in current.directory.rglob("*") if path.is_file()]
    print(f"size      {sum(path.stat().st_size for path in files) / 1e6:.0f} MB")
    print(f"packages  {current.packages}")
    return 0


def _list() -> int:
    from testbed import systems
    from testbed.network import links
    from testbed.workloads import suite

    for name, about in links.about().items():
        print(f"link      {name:<14} {about}")
    for name, kind in systems.SYSTEMS.items():
        print(f"system    {name:<14} {(kind.__doc__ or '').partition(chr(10))[0]}".rstrip())
    for name in suite.WORKLOADS:
        print(f"workload  {name}")
    return 0


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"'{text}': must be a number of seconds above 0")


def _integer(text: str) -> int:
    with suppress(ValueError):
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}': must be a whole number")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="relocator-lab", description="Runs test-bed programs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs = commands.add_parser("run", help="run a Python module in the lab")
    opens = commands.add_parser("shell", help="a shell in the lab, on the real clock")
    builds = commands.add_parser("build", help="build the VM's image if it isn't there")
    for command in (runs, opens):
        command.add_argument("--where", choices=WHERES, default="auto", help="default: auto")
        command.add_argument(
            "--memory", default=DEFAULT_MEMORY, metavar="SIZE", help="of the VM; default: 3G"
        )
        command.add_argument(
            "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="default: out/lab"
        )
    runs.add_argument("--clock", choices=CLOCKS, help="default: virtual in the VM, real natively")
    runs.add_argument(
        "--seed", type=_integer, default=DEFAULT_SEED, metavar="N", help="default: %(default)s"
    )
    runs.add_argument(
        "--timeout",
        type=_seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="end the program after S seconds of real time, with status 124; default: 900",
    )
    runs.add_argument(
        "--cpus",
        type=_integer,
        metavar="N",
        help="of the VM, on the real clock; default: the host's",
    )
    runs.add_argument(
        "--file",
        dest="files",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a copy of it, by its name, is in the program's directory LAB_FILES (repeatable)",
    )
    runs.add_argument(
        "--project",
        type=Path,
        metavar="DIR",
        help="take this directory along, what git would commit of it, and run in it",
    )
    runs.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME",
        help="take this Python package along, which is installed here (repeatable)",
    )
    for command in (runs, builds):
        command.add_argument(
            "--package",
            action="append",
            default=[],
            metavar="NAME",
            help="a Debian package that the VM has besides the lab's own (repeatable)",
        )
    runs.add_argument("module", metavar="MODULE", help="run as python3 -m MODULE")
    runs.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    builds.add_argument("--force", action="store_true", help="also if it is there")
    commands.add_parser("list", help="links, systems and workloads, also those of other projects")
    commands.add_parser("info", help="where a program would run, why, and which image")
    return parser


def _dispatch(arguments: argparse.Namespace) -> int:
    if arguments.command == "build":
        print(build.ensure(arguments.force, further=arguments.package).directory)
        return 0
    if arguments.command == "list":
        return _list()
    if arguments.command == "info":
        return _info()
    if arguments.command == "shell":
        return shell(out=arguments.out, where=arguments.where, memory=arguments.memory)
    return run(
        [arguments.module, *arguments.arguments],
        out=arguments.out,
        where=arguments.where,
        clock=arguments.clock,
        seed=arguments.seed,
        memory=arguments.memory,
        timeout_s=arguments.timeout,
        cpus=arguments.cpus,
        files=arguments.files,
        luggage=_luggage(arguments),
        further=arguments.package,
    )


def _luggage(arguments: argparse.Namespace) -> Luggage:
    if arguments.project is not None and not arguments.project.is_dir():
        raise UsageError(f"project '{arguments.project}': there is no such directory")
    project = arguments.project and arguments.project.resolve()
    return Luggage(project, tuple(arguments.python))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; status 2 for a wrong parameter, 130 or 143 if interrupted, else 1."""
    ending.on_signals()
    try:
        return _dispatch(_parser().parse_args(argv))
    except UsageError as error:
        say(str(error))
        return 2
    except (LabError, AnnouncementError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
