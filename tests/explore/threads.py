"""Threads, locks and clocks for the explored code: what runs next is decided by the explorer.

The product's modules use `threading` and `time` by these names; in an exploration the names stand
for the classes below. A thread is a greenlet. It runs until it would have to wait (for a lock, an
event, a message, a moment); then the explorer chooses what happens next. A wait with a time limit
may end by that at any moment. Nothing here depends on real time, so a run repeats itself exactly.
"""

from collections.abc import Callable
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

#: a wait that is no longer than this may end at any moment; a longer one when that time has passed
SHORT_S = 40.0


class Process:
    """What dies as one: the threads of a site's server, or of somebody who talks to one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True


class Task:
    """One thread. `ready` says whether what it waits for has come; None: it need not wait."""

    def __init__(self, kernel: "Kernel", process: Process, name: str, body: Callable[[], None]):
        self.process = process
        self.name = name
        self.ready: Callable[[], bool] | None = None
        self.until_s: float | None = None  # when its wait ends by itself
        self.ended = False
        self._kernel = kernel
        self._body = body
        self.greenlet = greenlet(self._run, kernel.hub)

    def _run(self) -> None:
        try:
            self._body()
        except GreenletExit:
            pass
        except BaseException as error:  # as a thread of nbdkit's would die: the end of the process
            self._kernel.defects.append((self, error))
        finally:
            self.ended = True

    @property
    def runnable(self) -> bool:
        """Whether it can go on: what it waits for has come, or its wait may end by time."""
        return not self.ended and (self.ready is None or self.timed or self.ready())

    @property
    def timed(self) -> bool:
        """Whether its wait may end by time now."""
        return self.until_s is not None and self.until_s <= self._kernel.now_s


class Kernel:
    """The tasks of one run, its clock, and the one that runs."""

    def __init__(self) -> None:
        self.hub = getcurrent()
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.now_s = 0.0
        self.defects: list[tuple[Task, BaseException]] = []
        self.names = 0  # given out by `unique`
        self.without: frozenset[str] = frozenset()  # threads that this world does without

    def spawn(self, process: Process, name: str, body: Callable[[], None]) -> Task:
        """A task that begins when it is run."""
        taken = {task.name for task in self.tasks}
        number = next(n for n in range(1, 99) if f"{process.name}/{name}{n}" not in taken)
        task = Task(self, process, f"{process.name}/{name}{number}", body)
        self.tasks.append(task)
        return task

    def run(self, task: Task) -> None:
        """Let a task go on until it waits or ends."""
        self.current = task
        task.ready, task.until_s = None, None
        task.greenlet.switch()
        self.current = None
        self.tasks = [one for one in self.tasks if not one.ended]

    def wait(self, ready: Callable[[], bool], limit_s: float | None = None) -> None:
        """Wait, in a task, until `ready`, or for so long."""
        task = self.current
        if task is None or not task.process.alive:
            raise GreenletExit
        task.ready = ready
        if limit_s is not None:
            task.until_s = self.now_s + (limit_s if limit_s > SHORT_S else 0.0)
        self.hub.switch()
        if not task.process.alive:
            raise GreenletExit
        self.current = task

    def end(self, process: Process) -> None:
        """All threads of a process are gone, wherever they were."""
        process.alive = False
        for task in self.tasks:
            if task.process is process and not task.ended:
                if task.greenlet:
                    self.current = task
                    task.greenlet.throw(GreenletExit)
                task.ended = True
        self.current = None
        self.tasks = [one for one in self.tasks if not one.ended]

    def unique(self) -> int:
        """A number that this run has not given out."""
        self.names += 1
        return self.names


class Here:
    """The run that the stand-ins below belong to."""

    kernel: Kernel


def _wait(ready: Callable[[], bool], limit_s: float | None = None) -> None:
    Here.kernel.wait(ready, limit_s)


class Lock:
    """As threading.Lock, and as RLock where that is only ever taken once."""

    def __init__(self) -> None:
        self._taken = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._taken:
            if not blocking:
                return False
            _wait(lambda: not self._taken, timeout if timeout >= 0 else None)
            if self._taken:
                return False
        self._taken = True
        return True

    def release(self) -> None:
        self._taken = False

    def locked(self) -> bool:
        return self._taken

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Condition:
    """As threading.Condition."""

    def __init__(self, lock: Lock | None = None) -> None:
        self._lock = lock or Lock()
        self._waiting: list[list[bool]] = []

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        told = [False]
        self._waiting.append(told)
        self._lock.release()
        _wait(lambda: told[0] and not self._lock.locked(), timeout)
        if not told[0]:
            self._waiting.remove(told)
        self._lock.acquire()
        return told[0]

    def notify_all(self) -> None:
        for told in self._waiting:
            told[0] = True
        self._waiting.clear()


class Event:
    """As threading.Event."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set and timeout != 0.0:
            _wait(self.is_set, timeout)
        return self._set


class Thread:
    """As threading.Thread."""

    def __init__(
        self,
        target: Callable[..., None],
        name: str = "thread",
        args: tuple[Any, ...] = (),
        daemon: bool = False,  # noqa: ARG002 (all are)
    ) -> None:
        self._body = lambda: target(*args)
        self._name = _job(target) if name == "handover" else name
        self._task: Task | None = None

    def start(self) -> None:
        kernel = Here.kernel
        if self._name not in kernel.without:
            assert kernel.current is not None
            self._task = kernel.spawn(kernel.current.process, self._name, self._body)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.ended

    def join(self, timeout: float | None = None) -> None:
        _wait(lambda: not self.is_alive(), timeout)


def _job(target: Callable[..., None]) -> str:
    """What a thread of the handover is for."""
    owner, _, name = target.__qualname__.rpartition(".")
    return owner.lower() if name == "run" else name.strip("_")


def monotonic() -> float:
    return Here.kernel.now_s


time = perf_counter = monotonic


def sleep(_: float) -> None:
    _wait(lambda: False, 0.0)
