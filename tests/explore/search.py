"""Every state that a world can come to; and from each of them, a way out.

A world can't be copied: it is real code, in the middle of what it does. So a state is reached by
doing again, from the beginning, what led to it, and from there on one goes as far as there is
something that was not done yet. What is found so is made short afterwards: whatever can be left out
of the trace is.

Whether a good end can be reached is tried where a world has come to its end, with the faults and
verbs of its budget spent. From all other states one of these is reached, without a fault.
"""

import gc
import shutil
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from tests.explore.invariants import broken, good_end
from tests.explore.key import key_of
from tests.explore.patches import explored
from tests.explore.plan import Action, Plan
from tests.explore.recovery import recover
from tests.explore.telling import describe, summary
from tests.explore.world import World, template_of

Trace = tuple[Action, ...]
FAULTS = frozenset({"kill", "power", "cut"})


@dataclass
class Found:
    """What an exploration came to. `violation`: what broke, and after which trace."""

    plan: Plan
    states: int = 0
    transitions: int = 0
    depth: int = 0
    ends: int = 0
    seconds: float = 0.0
    whole: bool = True  # nothing was left out for lack of time
    violation: tuple[list[str], Trace] | None = None

    def __str__(self) -> str:
        what = "all of them" if self.whole else "cut short"
        return (
            f"{self.plan.name}: {self.states} states, {self.transitions} transitions, {what}; "
            f"up to {self.depth} steps; {self.ends} ends; {self.seconds:.0f} s"
        )


class _Runs:
    """Worlds of one plan, one at a time, each from the beginning."""

    def __init__(self, plan: Plan) -> None:
        shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._root = Path(tempfile.mkdtemp(dir=shared))
        self._plan = plan
        self._template = template_of(plan, self._root / "world")
        self._world: World | None = None
        self._count = 0

    def fresh(self, trace: Trace = ()) -> World:
        """The world after `trace`."""
        self._leave()
        self._count += 1
        if self._count % 200 == 0:
            gc.collect()
        world = self._world = World(self._plan, self._root / "world", self._template)
        for action in trace:
            step(world, action)
        return world

    def _leave(self) -> None:
        if self._world is not None:
            self._world.close()
            shutil.rmtree(self._root / "world")
            self._world = None

    def close(self) -> None:
        self._leave()
        shutil.rmtree(self._root)


def step(world: World, action: Action) -> None:
    """Perform an action, and note what follows from it."""
    world.perform(action)
    world.after_step()


@dataclass
class _State:
    """What is known of a state: how it is reached, and what was not done there yet."""

    trace: Trace
    todo: list[Action]
    after: set[bytes] = field(default_factory=set)  # without a fault


class Explorer:
    """Explores one plan, within `most_s` seconds of this process's CPU time."""

    def __init__(self, plan: Plan, most_s: float = 1e9, *, liveness: bool = True) -> None:
        self._most_s = most_s
        self._liveness = liveness
        self._found = Found(plan)
        self._states: dict[bytes, _State] = {}
        self._queue: deque[bytes] = deque()

    def explore(self) -> Found:
        """Visit every state."""
        began_s, found = time.process_time(), self._found
        gc.disable()
        try:
            with explored():
                runs = _Runs(found.plan)
                gc.freeze()
                try:
                    self._visit_all(runs, began_s + self._most_s)
                    if self._liveness and found.violation is None:
                        self._try_ends(runs)
                    if found.violation is not None:
                        found.violation = shortened(runs, *found.violation)
                finally:
                    runs.close()
        finally:
            gc.unfreeze()
            gc.enable()
        found.seconds = time.process_time() - began_s
        return found

    def _visit_all(self, runs: _Runs, until_s: float) -> None:
        self._note(key_of(runs.fresh()), (), runs.fresh())
        while self._queue and self._found.violation is None:
            key = self._queue[0]
            if not self._states[key].todo:
                self._queue.popleft()
                continue
            world = runs.fresh(self._states[key].trace)
            while self._states[key].todo and self._found.violation is None:
                if time.process_time() > until_s:
                    self._found.whole = False
                    return
                key = self._go(world, key)

    def _go(self, world: World, key: bytes) -> bytes:
        """Do one thing that was not done yet in the state `key`; the state that it leads to."""
        state, found = self._states[key], self._found
        action = state.todo.pop()
        step(world, action)
        found.transitions += 1
        trace = (*state.trace, action)
        if "crash" not in action:
            state.todo += _crashes(world, action)
        if wrong := broken(world):
            found.violation = wrong, trace
        after = key_of(world)
        if after not in self._states:
            self._note(after, trace, world)
        if not FAULTS & {str(part) for part in action}:
            state.after.add(after)
        return after

    def _note(self, key: bytes, trace: Trace, world: World) -> None:
        self._states[key] = _State(trace, world.enabled()[::-1])
        self._queue.append(key)
        self._found.states = len(self._states)
        self._found.depth = max(self._found.depth, len(trace))

    def _try_ends(self, runs: _Runs) -> None:
        """From each state one goes on without a fault to an end, and there a way out is found."""
        known: dict[bytes, list[str]] = {}
        before: dict[bytes, list[bytes]] = {key: [] for key in self._states}
        for key, state in self._states.items():
            for after in state.after:
                before[after].append(key)
        fine: set[bytes] = set()
        for key in reversed(list(self._states)):  # the last found is nearest to an end
            if key in fine:
                continue
            trace = self._states[key].trace
            if wrong := recover(runs.fresh(trace), known, key_of, good_end):
                self._found.violation = wrong, trace
                return
            fine.add(key)
            reached = [key]
            while reached:
                for one in before[reached.pop()]:
                    if one not in fine:
                        fine.add(one)
                        reached.append(one)
        self._found.ends = len(known)


def _crashes(world: World, action: Action) -> list[Action]:
    """The same action with a crash at each of its moments: a store outlives no power failure."""
    hows = {"kill": ("sync", "store"), "power": ("sync",)}
    return [
        (*action, "crash", how, number)
        for number, moment in enumerate(world.moments_of_step, 1)
        for how, kinds in hows.items()
        if world.left.get(how) and moment in kinds
    ]


def shortened(runs: _Runs, wrong: list[str], trace: Trace) -> tuple[list[str], Trace]:
    """A violation with as few steps as still lead to one."""
    best = wrong, trace
    length = max(1, len(trace) // 2)
    while length:
        at = 0
        while at < len(best[1]):
            shorter = best[1][:at] + best[1][at + length :]
            found = _wrong_after(runs, shorter)
            if found is not None:
                best = found
            else:
                at += 1
        length //= 2
    return best


def _wrong_after(runs: _Runs, trace: Trace) -> tuple[list[str], Trace] | None:
    """What breaks on the way of `trace`, if it can be gone and something does."""
    world = runs.fresh()
    for number, action in enumerate(trace, 1):
        base = action[: action.index("crash")] if "crash" in action else action
        if base not in world.enabled():
            return None
        step(world, action)
        if wrong := broken(world):
            return wrong, trace[:number]
    wrong = recover(world, {}, key_of, good_end)
    return (wrong, trace) if wrong else None


def told(plan: Plan, trace: Trace) -> list[str]:
    """The trace in words."""
    lines: list[str] = []
    with explored():
        runs = _Runs(plan)
        world = runs.fresh()
        for number, action in enumerate(trace, 1):
            said = describe(world, action)
            step(world, action)
            lines.append(f"{number:3}. {said}")
            lines += [f"       {answer}" for answer in world.answered]
            lines.append(f"       -> {summary(world)}")
        runs.close()
    return lines
