"""How far `make reproduce` is, read from the output directory alone.

A run that has ended has a run.json; one that is under way has a log in `building`. So the picture
is the same whether the runs are on this machine or on a cluster that shares the directory. What is
left is estimated from the runs that have ended (their wall time is in cell.json) and from how far
those under way say they are; copies of other runs take no time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.running import progress, runner
from experiments.running.batch import Batch, Job
from experiments.scenarios.cells import Cell

POLL_S = 0.5
PLAIN_EVERY_S = 30.0
TYPICAL_S = 60.0
clock = progress.clock


@dataclass
class Watch:
    """The cells that have to run, and what is known of each."""

    cells: Sequence[Cell]
    out: Path
    ended: dict[str, str] = field(default_factory=dict)  # cell -> outcome
    since_s: dict[str, float] = field(default_factory=dict)  # cell -> when it was seen to run
    _walls_s: list[float] = field(default_factory=list)

    def look(self) -> list[Cell]:
        """Reads the directory; the cells that have ended since the last look."""
        news = []
        for cell in self.cells:
            if cell.id in self.ended:
                continue
            if (outcome := runner.outcome(self.out, cell.id)) is not None:
                self.ended[cell.id] = outcome
                self.since_s.pop(cell.id, None)
                news.append(cell)
                if cell.same_as is None:
                    self._walls_s.append(self.wall_s(cell))
            elif cell.id not in self.since_s and self.job(cell).log.exists():
                self.since_s[cell.id] = time.monotonic()
        return news

    def wall_s(self, cell: Cell) -> float:
        kept = runner.read_json(runner.directory(self.out, cell.id) / "cell.json")
        return float(kept.get("wall_s", 0.0))

    def job(self, cell: Cell) -> Job:
        """The run under way, as far as its log tells."""
        return Job(cell.id, (), runner.building(self.out, cell.id) / "lab.log")

    @property
    def running(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.id in self.since_s]

    @property
    def failed(self) -> int:
        return sum(outcome != "ok" for outcome in self.ended.values())

    def left_s(self) -> float:
        """Wall seconds until the last run has ended."""
        typical_s = self._typical_s()
        under_way = [
            max(typical_s - (time.monotonic() - since), 0.0) for since in self.since_s.values()
        ]
        waiting = [
            cell
            for cell in self.cells
            if cell.same_as is None and cell.id not in self.ended and cell.id not in self.since_s
        ]
        at_once = max(len(under_way), 1)
        return (sum(under_way) + typical_s * len(waiting)) / at_once

    def _typical_s(self) -> float:
        if self._walls_s:
            return sum(self._walls_s) / len(self._walls_s)
        expected = []
        for cell in self.running:
            share = progress.share_done(self.job(cell).tail(progress.TAIL_LINES))
            if share:
                expected.append((time.monotonic() - self.since_s[cell.id]) / share)
        return sum(expected) / len(expected) if expected else TYPICAL_S

    def phase(self, cell: Cell) -> str:
        return progress.phase_of(self.job(cell).tail(progress.TAIL_LINES))

    def headline(self) -> str:
        text = f"{len(self.ended)} of {len(self.cells)} cells"
        if self.failed:
            text += f", {self.failed} failed"
        return f"{text}, ~{clock(self.left_s())} to go"


def follow(batch: Batch, watch: Watch, console: Console) -> None:
    """Drives the batch to its end and shows the cells."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            while batch.poll():
                for cell in watch.look():
                    live.console.print(_ended(watch, cell), highlight=False, markup=False)
                live.update(_picture(watch))
                time.sleep(POLL_S)
    else:
        _follow_plainly(batch, watch, console)
    for cell in watch.look():
        console.print(_ended(watch, cell), highlight=False, markup=False, soft_wrap=True)


def _ended(watch: Watch, cell: Cell) -> str:
    took = "a copy" if cell.same_as is not None else clock(watch.wall_s(cell))
    return f"{watch.ended[cell.id]:8}{cell.id} ({took})"


def _picture(watch: Watch) -> Table:
    table = Table.grid(padding=(0, 2))
    for cell in watch.running:
        elapsed = clock(time.monotonic() - watch.since_s[cell.id])
        table.add_row(Text(cell.id), elapsed, Text(watch.phase(cell)))
    table.add_row(Text(watch.headline() if watch.cells else "metrics and figures", style="bold"))
    return table


def _follow_plainly(batch: Batch, watch: Watch, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    next_s = time.monotonic() + PLAIN_EVERY_S
    while batch.poll():
        for cell in watch.look():
            say(_ended(watch, cell))
        if time.monotonic() >= next_s:
            next_s += PLAIN_EVERY_S
            running = ", ".join(cell.id for cell in watch.running) or "nothing runs"
            say(f"{watch.headline()}; {running}")
        time.sleep(POLL_S)
