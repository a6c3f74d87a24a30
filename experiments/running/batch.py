"""Runs several programs at a time, each with its output in its own log, and ends them all together.

A `Batch` owns what it starts: every job is a process group of its own, so that Ctrl-C in the
terminal reaches only us; leaving the `with` block, however it is left, ends the jobs that still
run, first politely (SIGINT, as a person would), then not. Jobs start in the order given, at most
`at_once` of them together; when one fails the others are of no use and no more are started.
"""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

TAIL_BYTES = 16384
POLITELY = ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))


@dataclass
class Job:
    """One program. `status` is its exit status once it has ended."""

    name: str
    command: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_s: float | None = None
    ended_s: float | None = None
    status: int | None = None

    @property
    def elapsed_s(self) -> float:
        """Wall seconds it has run; 0 before it starts."""
        if self.started_s is None:
            return 0.0
        return (self.ended_s or time.monotonic()) - self.started_s

    def tail(self, lines: int) -> list[str]:
        """The last lines of its log that say something."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            text = log.read().decode(errors="replace").replace("\r", "\n")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


class Batch:
    """The jobs and the processes that run them."""

    def __init__(self, jobs: Sequence[Job], at_once: int, directory: Path) -> None:
        self.jobs = list(jobs)
        self._at_once = at_once
        self._directory = directory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> list[Job]:
        return [job for job in self.jobs if job.process is not None and job.status is None]

    @property
    def failed(self) -> Job | None:
        return next((job for job in self.jobs if job.status not in (None, 0)), None)

    def poll(self) -> bool:
        """Notes which jobs have ended, starts the next ones; False when there is no more to do."""
        for job in self.running:
            assert job.process is not None
            if (status := job.process.poll()) is not None:
                job.status, job.ended_s = status, time.monotonic()
        if self.failed:
            return False
        for job in self.jobs:
            if job.process is None and len(self.running) < self._at_once:
                self._start(job)
        return bool(self.running)

    def _start(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("wb") as log:
            job.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *job.command],  # if we are killed, so are they
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        job.started_s = time.monotonic()

    def stop(self) -> None:
        """Ends what still runs, and whatever of its process group a job left behind."""
        stopped = self.running
        for signum, patience_s in POLITELY:
            deadline_s = time.monotonic() + patience_s
            waiting = self.running
            for job in waiting:
                _signal_group(job, signum)
            for job in waiting:
                assert job.process is not None
                try:
                    job.status = job.process.wait(max(0.0, deadline_s - time.monotonic()))
                    job.ended_s = time.monotonic()
                except subprocess.TimeoutExpired:
                    continue  # the next signal is for this one
        for job in stopped:
            _signal_group(job, signal.SIGKILL)


def _signal_group(job: Job, signum: signal.Signals) -> None:
    assert job.process is not None
    try:
        os.killpg(job.process.pid, signum)
    except ProcessLookupError:
        return  # the group is empty: that is what was wanted
