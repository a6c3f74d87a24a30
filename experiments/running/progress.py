"""How far a batch of runs is, live: one line a run in a terminal, plain lines elsewhere.

The scripted migration prints a line for every event, and one now and then with what is present:

    prepare    9.1 s  calibrated            rtt 0.020 s ...
        run   18.0 s  ... A 0.0 Mbit/s  WAN 95.5 Mbit/s  present 41.2 %  ETA 3 s

The times in it are the lab's, not the wall clock's. What is left is estimated from the last event
seen, of which it is known at what share of a run's wall time it comes (`MILESTONES`), and from the
wall time the run has taken so far: right on fast and slow machines, and still a guess (~).
"""

import re
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from experiments.running.batch import Batch, Job

POLL_S = 0.25
PLAIN_EVERY_S = 15.0
TYPICAL_S = 120.0  # wall seconds of a run, until it says more about itself
WIDTH = 44
TAIL_LINES = 60

# The share of a run's wall time that is over when its log shows the event.
MILESTONES = {
    "sites built": 0.12,
    "calibrated": 0.13,
    "image made": 0.28,
    "nbdcopy measured": 0.37,
    "workloads started": 0.39,
    "memory copy started": 0.47,
    "switch done": 0.55,
    "background started": 0.62,
    "relocation complete": 0.87,
    "workloads ended": 0.92,
    "finished": 1.00,
}
_LINE = re.compile(r"^\s*(?:prepare|run)\s+[\d.]+ s\s+(?P<text>.*)$")
_PRESENT = re.compile(r"\bpresent (?P<percent>[\d.]+) %")


def phase(job: Job) -> str:
    """What the job does, for people: the last event in its log and how much is present."""
    if job.process is None:
        return "waiting for a core"
    if job.status is not None:
        return "done" if job.status == 0 else f"failed with status {job.status}"
    return phase_of(job.tail(TAIL_LINES))


def phase_of(lines: Sequence[str]) -> str:
    """The same, from the end of a running job's log."""
    texts = [match["text"] for line in lines if (match := _LINE.match(line))]
    events = [text for text in texts if not text.startswith("...")]
    last = " ".join(events[-1].split()) if events else (lines[-1] if lines else "starting")
    present = [match["percent"] for text in texts if (match := _PRESENT.search(text))]
    shown = last if len(last) <= WIDTH else last[: WIDTH - 1] + "…"
    return f"{shown} | present {present[-1]} %" if present else shown


def share_done(lines: Sequence[str]) -> float | None:
    """The share of a run's wall time that is over; None before the first milestone.

    Between the background copy's start and completion it grows with what is present.
    """
    share: float | None = None
    start, complete = MILESTONES["background started"], MILESTONES["relocation complete"]
    for text in (match["text"] for line in lines if (match := _LINE.match(line))):
        passed = [value for event, value in MILESTONES.items() if text.startswith(event)]
        share = max(passed, default=share)
        if share is not None and start <= share < complete and (here := _PRESENT.search(text)):
            share = start + (complete - start) * float(here["percent"]) / 100
    return share


class Estimates:
    """How long each job will take: what its milestones say, else what others took."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._seen: dict[str, tuple[float, float]] = {}  # job -> (share, expected seconds)

    def expected_s(self, job: Job) -> float:
        """Wall seconds from the job's start to its end."""
        share = share_done(job.tail(TAIL_LINES)) if job.status is None else None
        if share is not None and share > self._seen.get(job.name, (0.0, 0.0))[0]:
            self._seen[job.name] = (share, job.elapsed_s / share)
        if job.name in self._seen:
            return self._seen[job.name][1]
        ended = [other.elapsed_s for other in self._batch.jobs if other.status == 0]
        known = ended or [expected for _, expected in self._seen.values()]
        return sum(known) / len(known) if known else TYPICAL_S

    def left_s(self, job: Job) -> float:
        """Wall seconds until the job ends, its wait for a core included."""
        if job.status is not None:
            return 0.0
        left = max(self.expected_s(job) - job.elapsed_s, 0.0)
        if job.process is not None:
            return left
        return left + min((self.left_s(other) for other in self._batch.running), default=0.0)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def follow(batch: Batch, console: Console, title: Callable[[str], str] = str) -> None:
    """Drives the batch to its end, or to its first failure, and shows it; `title` names a job."""
    if not console.is_terminal:
        _follow_plainly(batch, lambda text: console.print(text, highlight=False, soft_wrap=True))
        return
    one_line = Column(no_wrap=True, overflow="ellipsis")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16, table_column=Column(min_width=16)),
        TextColumn("{task.fields[elapsed]:>5} {task.fields[eta]:>7}"),
        TextColumn("{task.fields[phase]}", markup=False, table_column=one_line),
    )
    estimates = Estimates(batch)
    with Progress(*columns, console=console) as progress:
        tasks = {
            job.name: progress.add_task(title(job.name), total=1.0, elapsed="", eta="", phase="")
            for job in batch.jobs
        }
        while batch.poll():
            _update(progress, tasks, batch, estimates)
            time.sleep(POLL_S)
        _update(progress, tasks, batch, estimates)


def _update(
    progress: Progress, tasks: dict[str, TaskID], batch: Batch, estimates: Estimates
) -> None:
    for job in batch.jobs:
        left_s = estimates.left_s(job)
        share = 1.0 if job.status == 0 else job.elapsed_s / max(job.elapsed_s + left_s, 1e-9)
        progress.update(
            tasks[job.name],
            completed=share if job.status == 0 else min(share, 0.97),
            elapsed=clock(job.elapsed_s) if job.process else "",
            eta=f"~{clock(left_s)}" if job.status is None and left_s > 0 else "",
            phase=phase(job),
        )


def _follow_plainly(batch: Batch, say: Callable[[str], None]) -> None:
    """A line when a run starts, ends or has to wait, and now and then one about each of the rest.
    Its wait is in the estimate of one that waits: so the latest of them all is when all is done."""
    told: dict[str, str] = {}
    estimates = Estimates(batch)
    next_s = time.monotonic() + PLAIN_EVERY_S
    more = True
    while more:
        more = batch.poll()
        for job in batch.jobs:
            state = "waits" if job.process is None else ("runs" if job.status is None else "ended")
            if state != told.get(job.name):
                if state == "ended":
                    say(f"{job.name}: {phase(job)} after {clock(job.elapsed_s)}")
                elif state == "runs":
                    say(f"{job.name}: started, about {clock(estimates.expected_s(job))} to go")
                else:
                    say(f"{job.name}: waits for a core, about {clock(estimates.left_s(job))} to go")
                told[job.name] = state
        if more and time.monotonic() >= next_s:
            next_s += PLAIN_EVERY_S
            for job in batch.jobs:
                if job.status is None:
                    left = clock(estimates.left_s(job))
                    say(f"{job.name}: {clock(job.elapsed_s)}, ~{left} to go: {phase(job)}")
        if more:
            time.sleep(POLL_S)
