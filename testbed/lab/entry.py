"""Where a test-bed program runs: on this kernel, or in a throwaway virtual machine.

The test bed wants netem, kernel nbd, device-mapper and root. `choose` decides: where they are here,
the program runs natively; elsewhere the same program runs in a VM that boots Debian's stock kernel
(see image and vm). The caller sees no difference: the program gets the same arguments, a directory
LAB_OUT for its files, LAB_FILES with copies of those given by `--file`, LAB_CLOCK and LAB_SEED, no
terminal and nothing on its standard input; its output appears as it is printed, its files come to
`--out`, its exit status is ours, and Ctrl-C ends it. Only the VM has a virtual clock, on which
equal runs give equal bytes.

    python -m testbed.lab run [options] -- MODULE [ARGUMENT...]
    python -m testbed.lab shell | build [--force] | info
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from relocator.cli import host
from testbed import image, native, vm
from testbed.image import LabError

WHERES = ("auto", "native", "vm")
CLOCKS = ("virtual", "real")
DEFAULT_OUT = Path("out/lab")
DEFAULT_MEMORY = "3G"
DEFAULT_SEED = 42
DEFAULT_TIMEOUT_S = 900.0
SMALLEST_MEMORY_MIB = 1024
LARGEST_SEED = 2**63 - 1
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class UsageError(LabError):
    """A parameter that can't be; the message names it, its value, and what would be right."""


@dataclass(frozen=True)
class Choice:
    """Where a program runs ("native" or "vm") and, in one line, why."""

    where: str
    reason: str


def choose(where: str = "auto", clock: str | None = None) -> Choice:
    """Decides where to run; LabError if `where` was asked for and is impossible here."""
    if where not in WHERES:
        raise UsageError(f"where '{where}': must be one of {', '.join(WHERES)}")
    if clock not in (None, *CLOCKS):
        raise UsageError(f"clock '{clock}': must be one of {', '.join(CLOCKS)}")
    if where == "native" and clock == "virtual":
        raise UsageError("clock 'virtual': exists only in the VM; use where 'vm', or clock 'real'")
    obstacles = host.native_obstacles() if where != "vm" else []
    if where == "native" and obstacles:
        raise LabError("can't run natively: " + "; ".join(obstacles))
    if where == "native" or (where == "auto" and not obstacles and clock != "virtual"):
        return Choice(
            "native", "asked for" if where == "native" else "root, and a kernel with netem"
        )
    if vm_obstacles := host.vm_obstacles():
        raise LabError("can't run in the VM: " + "; ".join(vm_obstacles))
    if where == "vm":
        return Choice("vm", "asked for")
    return Choice("vm", "; ".join(obstacles) or "the virtual clock was asked for")


def run(
    argv: Sequence[str],
    *,
    out: Path,
    where: str = "auto",
    clock: str | None = None,
    seed: int = DEFAULT_SEED,
    memory: str = DEFAULT_MEMORY,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    cpus: int | None = None,
    files: Sequence[Path] = (),
    stdout: BinaryIO | None = None,
) -> int:
    """Runs `python3 -m ARGV...` in the lab and returns its exit status; its files appear in `out`.

    `clock` None means virtual in the VM and real natively. The program finds a copy of each of
    `files`, by its name, in the directory LAB_FILES. `stdout` takes the program's output
    (standard output and standard error in one); None is this process's. After `timeout_s` of real
    time the program is ended and the status is 124.
    """
    if not argv or not _MODULE.fullmatch(argv[0]):
        given = argv[0] if argv else ""
        raise UsageError(f"module '{given}': must be a module's dotted name, such as testbed.lab")
    if any("\0" in argument for argument in argv):
        raise UsageError("argument: can't hold a NUL character")
    along = _by_name(files)
    choice = choose(where, clock)
    settings = _settings(choice, clock, seed, memory, cpus)
    stdout = stdout or sys.stdout.buffer
    if choice.where == "native":
        _say(f"native, real clock: {choice.reason}")
        return native.run(argv, seed=seed, out=out, timeout_s=timeout_s, stdout=stdout, files=along)
    _say(f"virtual machine, {settings.clock} clock, seed {seed}: {choice.reason}")
    root = image.ensure()
    return vm.run(root, argv, settings, out=out, timeout_s=timeout_s, stdout=stdout, files=along)


def _by_name(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        if not path.is_file():
            raise UsageError(f"file '{path}': there is no such file")
        if path.name in found:
            raise UsageError(f"file '{path}': {found[path.name]} has the same name in the lab")
        found[path.name] = path
    return found


def shell(*, out: Path, where: str = "auto", memory: str = DEFAULT_MEMORY) -> int:
    """An interactive shell where a program would run, on the real clock."""
    choice = choose(where)
    if choice.where == "native":
        _say(f"a native shell: {choice.reason}")
        return subprocess.run([os.environ.get("SHELL", "/bin/bash")], check=False).returncode
    _say(f"a shell in the virtual machine: {choice.reason}")
    _say(f"'exit' ends it; files in $LAB_OUT come to {out}")
    settings = _settings(choice, "real", DEFAULT_SEED, memory, None)
    return vm.shell(image.ensure(), settings, out=out)


def _settings(
    choice: Choice, clock: str | None, seed: int, memory: str, cpus: int | None
) -> vm.Settings:
    """Checks the machine's parameters (also when they don't matter, natively)."""
    clock = clock or ("real" if choice.where == "native" else "virtual")
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed '{seed}': must be between 0 and {LARGEST_SEED}")
    if clock == "virtual" and cpus not in (None, 1):
        raise UsageError(f"cpus '{cpus}': the virtual clock has 1 CPU; use clock 'real' for more")
    if cpus is not None and cpus < 1:
        raise UsageError(f"cpus '{cpus}': must be 1 or more")
    cores = len(os.sched_getaffinity(0))
    return vm.Settings(
        clock=clock,
        seed=seed,
        memory_mib=memory_mib(memory),
        cpus=1 if clock == "virtual" else cpus or cores,
    )


def memory_mib(text: str) -> int:
    """'3G' or '3072M' in MiB."""
    match = re.fullmatch(r"(\d{1,6})([MG])", text)
    size_mib = int(match[1]) * (1024 if match[2] == "G" else 1) if match else 0
    if size_mib < SMALLEST_MEMORY_MIB:
        raise UsageError(
            f"memory '{text}': must be a size such as 3G or 2048M, at least {SMALLEST_MEMORY_MIB}M"
        )
    return size_mib


def _say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


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
    parser = argparse.ArgumentParser(
        prog="python -m testbed.lab", description="Runs test-bed programs."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs = commands.add_parser("run", help="run a Python module in the lab")
    opens = commands.add_parser("shell", help="a shell in the lab, on the real clock")
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
    runs.add_argument("module", metavar="MODULE", help="run as python3 -m MODULE")
    runs.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    builds = commands.add_parser("build", help="build the VM's image if it isn't there")
    builds.add_argument("--force", action="store_true", help="also if it is there")
    commands.add_parser("info", help="where a program would run, why, and which image")
    return parser


def _dispatch(arguments: argparse.Namespace) -> int:
    if arguments.command == "build":
        print(image.ensure(force=arguments.force).directory)
        return 0
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
    )


def _terminated(signum: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signum)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; status 2 for a wrong parameter, 130 or 143 if interrupted, else 1."""
    # Set, not inherited: a shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGHUP, _terminated)
    try:
        return _dispatch(_parser().parse_args(argv))
    except UsageError as error:
        _say(str(error))
        return 2
    except LabError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
