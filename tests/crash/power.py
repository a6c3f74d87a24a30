"""Power failure, replayed: at every point of a recorded log the store opens and holds what it must.

    python -m tests.crash.power [--points N] [--requests N] [--size MIB] [--fs ext4] [--seed N]

Records in the lab (see record.py), then, for each point of the log at which power may fail, makes
the disk as it would be found, mounts it here (root and loop devices), opens the store as after a
reboot and checks it block by block:

- the store opens, or there was no finished store yet and nothing had been promised;
- no flushed write is lost: its block is present and holds it or a later one;
- no block is present whose data is not there: it holds the source's data, or a write that was sent;
- none holds less than the source had when the epoch began that the store says its copy is of.

With `--believe-live` the live map is believed, as after a killed process: it then promises what the
disk has not, which must be found out, or this test would prove nothing.
"""

import argparse
import gzip
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from relocator.errors import RelocatorError
from relocator.store.meta import Meta, new_token
from relocator.store.opening import open_store
from relocator.store.store import Store
from tests.support.stamps import SECTOR_BYTES
from tests.support.versions import History, load
from tests.support.write_log import Point, WriteLog, every_point, kept_by, lossy_points, promises

PROJECT = Path(__file__).parents[2]
BLOCK_BYTES = 4096
REBOOTED = "another boot".ljust(36)


def record(out: Path, fs: str, size_mib: int, requests: int, seed: int) -> None:
    """Make a recording in the lab.

    Raises:
        RuntimeError: it failed; holds what it printed.
    """
    task = ["tests.crash.record", fs, str(size_mib), str(requests), str(seed)]
    options = ["--where", "vm", "--seed", str(seed), "--out", str(out)]
    argv = [sys.executable, "-m", "testbed.lab", "run", *options, "--", *task]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"recording failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")


@dataclass
class Tally:
    """What was tried, and what was found wrong."""

    points: int = 0
    lossy: int = 0
    before_the_store: int = 0
    present_blocks: int = 0
    absent_blocks: int = 0
    complete: int = 0
    standing_by: int = 0
    wrong: list[str] = field(default_factory=list)


class Replay:
    """A recording, and the disk as it grows along the log."""

    def __init__(self, recording: Path, work: Path, *, believe_live: bool = False) -> None:
        self.facts: dict[str, Any] = json.loads((recording / "facts.json").read_text())
        self.boot = self.facts["boot"] if believe_live else REBOOTED
        self.trace = recording / "trace"
        self.work = work
        self.log = WriteLog(gzip.decompress((recording / "log.gz").read_bytes()))
        entries = self.log.entries
        self.first = next(one.index for one in entries if one.text == "mounted") + 1
        self.tally = Tally()
        self._known: dict[int, tuple[bytes, bool]] = {}

    def points(self, most: int, seed: int) -> list[Point]:
        """All points of the log if they are at most `most`, else a choice of them.

        Half of a choice goes to points that lose writes; flushes and FUA writes come first.
        """
        choose = random.Random(seed)
        whole = every_point(self.log.entries, self.first)
        lossy = lossy_points(self.log.entries, self.first, seed, each=3)
        if len(whole) + len(lossy) > most:
            lossy = choose.sample(lossy, min(len(lossy), most // 2))
            strong = promises(self.log.entries, whole)
            weak = [point for point in whole if self.log.entries[point.after].plain]
            left = most - len(lossy)
            strong = choose.sample(strong, min(len(strong), left))
            whole = strong + choose.sample(weak, min(len(weak), left - len(strong)))
        return sorted([*whole, *lossy], key=lambda point: (point.after, sorted(point.lost)))

    def run(self, points: list[Point], *, progress: bool = False) -> Tally:
        """Let power fail at each of the points, which ascend."""
        entries = self.log.entries
        history = load(self.trace, self.facts["sectors"])
        bounds = self._bounds(history)
        grown, at, marked = self.work / "grown", 0, 0
        with grown.open("wb") as file:
            file.truncate(self.facts["fs_bytes"])
        for number, point in enumerate(points):
            kept = kept_by(entries, point.after, at)
            with grown.open("r+b") as disk:
                self._apply(disk, range(at, kept))
            at = kept
            for entry in entries[marked : point.after + 1]:
                history.promise(entry.text)
            marked = point.after + 1
            history.most = bounds[point.after]
            self._fail(point, kept, history)
            if progress and number % 100 == 99:
                print(f"{number + 1} of {len(points)}, {len(self.tally.wrong)} wrong", flush=True)
        return self.tally

    def _bounds(self, history: History) -> list[int]:
        """How many writes had been sent by each entry of the log, at most."""
        bounds, most = [], sys.maxsize
        for entry in reversed(self.log.entries):
            most = min(most, history.bounds.get(entry.text, most))
            bounds.append(most)
        return bounds[::-1]

    def _apply(self, disk: Any, indexes: Iterable[int]) -> None:
        def write(data: bytes | memoryview, offset: int) -> None:
            disk.seek(offset)
            disk.write(data)

        for index in indexes:
            self.log.apply(self.log.entries[index], write)

    def _fail(self, point: Point, at: int, history: History) -> None:
        """Power fails: what is on the disk is looked at."""
        # A new file each time: a loop device may outlive its mount for a moment, and mount would
        # take the one of the same file again, with the old disk in its cache.
        found = self.work / f"found-{self.tally.points}"
        sparse = ["cp", "--sparse=always", str(self.work / "grown"), str(found)]
        subprocess.run(sparse, check=True)
        with found.open("r+b") as disk:
            rest = range(at, point.after + 1)
            self._apply(disk, (index for index in rest if index not in point.lost))
        self.tally.points += 1
        self.tally.lossy += bool(point.lost)
        try:
            with mounted(found, self.work / "mounted", self.facts["fs"]) as directory:
                wrong = self._open(directory / "store", history)
        except (RelocatorError, OSError, subprocess.CalledProcessError) as error:
            wrong = f"it does not open: {error}"
        found.unlink()
        if wrong is not None:
            self.tally.wrong.append(f"{point}: {wrong}")

    def _open(self, directory: Path, history: History) -> str | None:
        fresh = Meta(
            new_token(), self.facts["sectors"] * SECTOR_BYTES, BLOCK_BYTES, "fake:", complete=False
        )
        with patch("relocator.store.store.boot_id", lambda: self.boot):
            store = open_store(directory, fresh)
        try:
            self.tally.before_the_store += store.meta.id == fresh.id
            self.tally.complete += store.meta.complete
            self.tally.standing_by += store.meta.standby
            base = store.meta.base
            history.copy_of(base.epoch if store.meta.standby and base is not None else None)
            return self._check(store, history)
        finally:
            store.abandon()

    def _check(self, store: Store, history: History) -> str | None:
        """Each block against what it may hold; None if all is well."""
        sectors = BLOCK_BYTES // SECTOR_BYTES
        data = bytearray(store.geometry.size_bytes)
        store.image.read_into(data, 0)
        for block in range(store.geometry.total_blocks):
            first = block * sectors
            if not store.meta.complete and not store.present[block]:
                self.tally.absent_blocks += 1
                if any(history.floor[first : first + sectors]):
                    return f"block {block} was written and flushed, and is absent"
                continue
            self.tally.present_blocks += 1
            for sector in range(first, first + sectors):
                at = sector * SECTOR_BYTES
                wrong = history.may_hold(sector, bytes(data[at : at + SECTOR_BYTES]))
                if wrong is not None:
                    return f"block {block} is present, but {wrong}"
        return None


@contextmanager
def mounted(image: Path, point: Path, fs: str, *options: str) -> Iterator[Path]:
    """The file system in an image; its journal is replayed as after a reboot."""
    point.mkdir(exist_ok=True)
    mount = ["mount", "-t", fs, "-o", ",".join(("loop", *options)), str(image), str(point)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True, capture_output=True)


def main() -> int:
    """Record, replay, report; status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.power", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--points", type=int, default=100_000, help="at most; default: all there are"
    )
    parser.add_argument("--requests", type=int, default=3000, help="of the clients (3000)")
    parser.add_argument("--size", type=int, default=8, metavar="MIB", help="of the disk (8)")
    parser.add_argument("--fs", choices=("ext3", "ext4"), default="ext4", help="(ext4)")
    parser.add_argument("--seed", type=int, default=1, help="of the requests and the choice (1)")
    parser.add_argument("--recording", type=Path, help="replay this one; made if missing")
    parser.add_argument("--believe-live", action="store_true", help="the control: must fail")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="relocator-power-") as directory:
        recording = given.recording or Path(directory) / "recording"
        if not (recording / "facts.json").exists():
            record(recording, given.fs, given.size, given.requests, given.seed)
        replay = Replay(recording, Path(directory), believe_live=given.believe_live)
        points = replay.points(given.points, given.seed)
        print(f"{len(replay.log.entries)} entries in the log, {len(points)} points", flush=True)
        tally = replay.run(points, progress=True)
    for line in tally.wrong[:20]:
        print(line)
    print(
        f"{tally.points} power failures, {tally.lossy} of them with writes lost out of order: "
        f"{len(tally.wrong)} wrong\n"
        f"{tally.before_the_store} before the store was made, {tally.standing_by} standing by, "
        f"{tally.complete} complete; "
        f"{tally.present_blocks} present and {tally.absent_blocks} absent blocks looked at"
    )
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
