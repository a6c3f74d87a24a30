"""The compile workload: `python3 -m testbed.workloads.compile MOUNT LOG PERIOD_S`.

One cycle: drop the page cache, unpack a source tree, compile every file with tcc, link, run the
program, compare what it prints with what the generator computed, remove the tree. A line a cycle
goes to LOG (which lies outside the disk): start, unpacked, linked, end on the monotonic clock.
Cycles start PERIOD_S apart, or one after the other where they take longer, as fast machines
would otherwise do nothing else.
"""

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from testbed.workloads import files, tree
from testbed.workloads.base import Guest, Log, Room, Verdict, Work, plain, python
from testbed.workloads.stop import Stop

TREES = 6
ROOM = Room(6 * files.MIB, TREES + 64)


def _run(argv: list[str], cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def drop_caches() -> None:
    """Empties the page, dentry and inode caches of everything that is clean."""
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def cycle(mount: Path, archive: Path) -> tuple[float, float, float, float]:
    """One cycle's four times."""
    build = mount / "build"
    build.mkdir()
    drop_caches()
    start_s = time.monotonic()
    _run(["tar", "-xf", str(archive)], cwd=build)
    tree = build / "tree"
    unpacked_s = time.monotonic()
    flags = ["-nostdinc", "-nostdlib"]
    objects = []
    for source in sorted(tree.glob("*.c")):
        objects.append(source.with_suffix(".o").name)
        _run(["tcc", *flags, "-c", source.name, "-o", objects[-1]], cwd=tree)
    _run(["tcc", *flags, "-o", "program", *objects], cwd=tree)
    linked_s = time.monotonic()
    printed = _run(["./program"], cwd=tree)
    expected = (tree / "EXPECTED").read_text()
    if printed != expected:
        raise RuntimeError(f"{archive.name}: the program printed {printed!r}, not {expected!r}")
    shutil.rmtree(build)
    return start_s, unpacked_s, linked_s, time.monotonic()


@dataclass(frozen=True, slots=True)
class Compile:
    """The workload; its work has the parts unpack, compile and run."""

    period_s: float
    name: str = "compile"
    room: Room = ROOM

    def prepare(self, point: Path, seed: int) -> dict[str, str]:
        (point / "trees").mkdir()
        return {
            f"trees/{number}.tar": files.write(
                point / f"trees/{number}.tar", [tree.archive(seed * TREES + number)]
            )
            for number in range(TREES)
        }

    def start(self, guest: Guest) -> None:
        log = guest.logs / "compile.cycles"
        command = python("testbed.workloads.compile", guest.mount, log, self.period_s)
        guest.supervisor.start(self.name, command)

    def collect(self, logs: Path) -> Log:
        work = []
        for line in (logs / "compile.cycles").read_text().splitlines():
            start_s, unpacked_s, linked_s, end_s = (float(part) for part in line.split(","))
            parts_s = (unpacked_s - start_s, linked_s - unpacked_s, end_s - linked_s)
            work.append(Work(self.name, start_s, end_s, parts_s))
        return Log(work=work)

    def check(self, mount: Path, logs: Path) -> Verdict:  # noqa: ARG002
        return Verdict([], "every program printed what it had to")


def main(arguments: list[str]) -> int:
    mount, log_path, period_s = Path(arguments[0]), Path(arguments[1]), float(arguments[2])
    archives = sorted((mount / "trees").glob("*.tar"))
    stop = Stop()
    number = 0
    with log_path.open("w", buffering=1) as log:
        while not stop.requested:
            times = cycle(mount, archives[number % len(archives)])
            log.write(",".join(f"{time_s:.9f}" for time_s in times) + "\n")
            number += 1
            stop.sleep_until(times[0] + period_s)
    return 0


KINDS = {"compile": plain(lambda settings: Compile(settings.compile_period_s))}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
