"""Thread schedules by seed: who goes first among nbdkit's threads, changed at seeded moments.

In the manner of PCT (Burckhardt et al., ASPLOS 2010): every thread has a priority of its own,
strictly obeyed, so that on one CPU the schedule follows from the priorities; at some moments the
thread that goes first becomes the one that goes last. A race that needs one thread to stop between
two steps while another one goes on is met by few seeds then, instead of by luck. The servers are
not touched: their threads become the kernel's SCHED_FIFO, from outside.
"""

import os
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

#: above all that is shuffled: whoever drives a world, and the scheduler itself
DRIVER, SCHEDULER = 80, 90
LOWEST, HIGHEST = 1, 60
#: of seconds on the virtual clock, between two looks for threads that are new
LOOK_S = 0.01


class Schedule:
    """Priorities of all threads of the servers, a process of its own; a context."""

    def __init__(self, seed: int, change_s: float) -> None:
        self._choose = random.Random(f"schedule {seed}")
        self._change_s = change_s
        self._priorities: dict[int, int] = {}
        self._pid = 0

    def __enter__(self) -> Self:
        driver = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            with suppress(BaseException):
                _first_come(0, SCHEDULER)
                self._run(driver)
            os._exit(0)
        _first_come(0, DRIVER, os.SCHED_RESET_ON_FORK)
        return self

    def __exit__(self, *_failure: object) -> None:
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

    def _run(self, driver: int) -> None:
        change_s = time.monotonic()
        while os.getppid() == driver:
            threads = _threads(driver)
            self._priorities = {
                tid: self._priorities.get(tid) or self._choose.randint(LOWEST + 1, HIGHEST)
                for tid in threads
            }
            if time.monotonic() >= change_s:
                self._change()
                change_s = time.monotonic() + self._choose.expovariate(1 / self._change_s)
            for tid, priority in self._priorities.items():
                with suppress(ProcessLookupError):  # it has ended
                    _first_come(tid, priority)
            time.sleep(LOOK_S)

    def _change(self) -> None:
        """Who goes first goes last; now and then all are dealt anew."""
        if not self._priorities:
            return
        if self._choose.random() < 0.2:
            for tid in self._priorities:
                self._priorities[tid] = self._choose.randint(LOWEST + 1, HIGHEST)
        first = max(self._priorities, key=lambda tid: (self._priorities[tid], tid))
        self._priorities[first] = LOWEST


def _first_come(tid: int, priority: int, of_children: int = 0) -> None:
    os.sched_setscheduler(tid, os.SCHED_FIFO | of_children, os.sched_param(priority))


def _threads(driver: int) -> list[int]:
    """Those of the driver's children that are nbdkit, in the order in which they began."""
    found = []
    with suppress(FileNotFoundError):
        children = Path(f"/proc/{driver}/task/{driver}/children").read_text().split()
        for pid in map(int, children):
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "nbdkit":
                    found += [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    return sorted(found)
