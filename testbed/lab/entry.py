"""Where a test-bed program runs: on this kernel, or in a throwaway virtual machine.

The test bed wants netem, kernel nbd, device-mapper and root. `choose` decides: where they are here,
the program runs natively; elsewhere the same program runs in a VM that boots Debian's stock kernel
(see image and vm). The caller sees no difference: the program gets the same arguments, a directory
LAB_OUT for its files, LAB_FILES with copies of those given by `--file`, LAB_CLOCK and LAB_SEED, no
terminal and nothing on its standard input; its output appears as it is printed, its files come to
`--out`, its exit status is ours, and Ctrl-C ends it. Only the VM has a virtual clock, on which
equal runs give equal bytes.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from relocator.cli import host
from testbed.lab import build, native, vm
from testbed.lab.image import LabError
from testbed.lab.luggage import Luggage

WHERES = ("auto", "native", "vm")
CLOCKS = ("virtual", "real")
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


class Host(Protocol):
    """What stands in the way on a host (relocator.cli.host); empty if nothing does."""

    def native_obstacles(self) -> list[str]: ...
    def vm_obstacles(self) -> list[str]: ...


def choose(where: str = "auto", clock: str | None = None, on: Host = host) -> Choice:
    """Decides where to run; LabError if `where` was asked for and is impossible here."""
    if where not in WHERES:
        raise UsageError(f"where '{where}': must be one of {', '.join(WHERES)}")
    if clock not in (None, *CLOCKS):
        raise UsageError(f"clock '{clock}': must be one of {', '.join(CLOCKS)}")
    if where == "native" and clock == "virtual":
        raise UsageError("clock 'virtual': exists only in the VM; use where 'vm', or clock 'real'")
    obstacles = on.native_obstacles() if where != "vm" else []
    if where == "native" and obstacles:
        raise LabError("can't run natively: " + "; ".join(obstacles))
    if where == "native" or (where == "auto" and not obstacles and clock != "virtual"):
        return Choice(
            "native", "asked for" if where == "native" else "root, and a kernel with netem"
        )
    if vm_obstacles := on.vm_obstacles():
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
    luggage: Luggage | None = None,
    further: Sequence[str] = (),
    stdout: BinaryIO | None = None,
) -> int:
    """Runs `python3 -m ARGV...` in the lab and returns its exit status; its files appear in `out`.

    `clock` None means virtual in the VM and real natively. The program finds a copy of each of
    `files`, by its name, in the directory LAB_FILES. `luggage` is what else travels with it, of a
    project that isn't ours, which it runs in; `further` are Debian packages that the VM's image has
    besides the lab's own (natively they must be installed). `stdout` takes the program's output
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
        say(f"native, real clock: {choice.reason}")
        return native.run(
            argv,
            seed=seed,
            out=out,
            timeout_s=timeout_s,
            stdout=stdout,
            files=along,
            project=luggage.project if luggage else None,
        )
    say(f"virtual machine, {settings.clock} clock, seed {seed}: {choice.reason}")
    root = build.ensure(further=further)
    return vm.run(
        root,
        argv,
        settings,
        out=out,
        timeout_s=timeout_s,
        stdout=stdout,
        files=along,
        luggage=luggage,
    )


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
        say(f"a native shell: {choice.reason}")
        return subprocess.run([os.environ.get("SHELL", "/bin/bash")], check=False).returncode
    say(f"a shell in the virtual machine: {choice.reason}")
    say(f"'exit' ends it; files in $LAB_OUT come to {out}")
    settings = _settings(choice, "real", DEFAULT_SEED, memory, None)
    return vm.shell(build.ensure(), settings, out=out)


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


def say(text: str) -> None:
    """Tell the user, beside the program's output."""
    print(f"lab: {text}", file=sys.stderr, flush=True)
