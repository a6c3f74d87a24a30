"""How far a batch of runs is, live: one line a run in a terminal, plain lines elsewhere.

What a run does comes from the last lines of its log, in which the scripted migration prints a line
for every event and, while blocks arrive, how many are present. How long it will take comes from
what such a run took elsewhere (`TYPICAL_S`), corrected by the runs that have ended here: a guess,
and shown as one (~).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from experiments import wording
from experiments.batch import Batch, Job

POLL_S = 0.25
PLAIN_EVERY_S = 15.0
# Wall seconds of a run on two cores with another beside it; only the estimate hangs on them.
TYPICAL_S = 120.0
WIDTH = 46
_NOISE = re.compile(r"^(lab|migration):\s*")


def phase(job: Job) -> str:
    """The last line of the job's log, for people; how it stands if there is none."""
    if job.process is None:
        return "waiting for a core"
    if job.status is not None:
        return "done" if job.status == 0 else f"failed with status {job.status}"
    lines = job.tail(1)
    text = _NOISE.sub("", lines[0]) if lines else "starting"
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def expected_s(batch: Batch) -> float:
    """Wall seconds that a run of this batch is likely to take."""
    ended = [job.elapsed_s for job in batch.jobs if job.status == 0]
    return sum(ended) / len(ended) if ended else TYPICAL_S


def remaining_s(batch: Batch, job: Job) -> float:
    """Wall seconds until `job` ends, as far as can be said."""
    if job.status is not None:
        return 0.0
    left = max(expected_s(batch) - job.elapsed_s, 0.0)
    if job.process is not None:
        return left
    first = min((remaining_s(batch, other) for other in batch.running), default=0.0)
    return first + left


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def follow(batch: Batch, console: Console) -> None:
    """Drives the batch to its end, or to its first failure, and shows it."""
    if not console.is_terminal:
        _follow_plainly(batch, lambda text: console.print(text, highlight=False, soft_wrap=True))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[elapsed]:>5} {task.fields[eta]:>7}"),
        TextColumn("{task.fields[phase]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {
            job.name: progress.add_task(
                wording.title(job.name), total=1.0, elapsed="", eta="", phase=""
            )
            for job in batch.jobs
        }
        while batch.poll():
            _update(progress, tasks, batch)
            time.sleep(POLL_S)
        _update(progress, tasks, batch)


def _update(progress: Progress, tasks: dict[str, TaskID], batch: Batch) -> None:
    for job in batch.jobs:
        left_s = remaining_s(batch, job)
        share = 1.0 if job.status == 0 else job.elapsed_s / max(job.elapsed_s + left_s, 1e-9)
        progress.update(
            tasks[job.name],
            completed=share if job.status == 0 else min(share, 0.97),
            elapsed=clock(job.elapsed_s) if job.process else "",
            eta=f"~{clock(left_s)}" if job.status is None and left_s > 0 else "",
            phase=phase(job),
        )


def _follow_plainly(batch: Batch, say: Callable[[str], None]) -> None:
    """A line when a run starts or ends, and now and then one about each that runs."""
    told: dict[str, str] = {}
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
                    say(f"{job.name}: started, about {clock(expected_s(batch))} to go")
                told[job.name] = state
        if more and time.monotonic() >= next_s:
            next_s += PLAIN_EVERY_S
            for job in batch.running:
                left = clock(remaining_s(batch, job))
                say(f"{job.name}: {clock(job.elapsed_s)}, ~{left} to go: {phase(job)}")
        if more:
            time.sleep(POLL_S)
