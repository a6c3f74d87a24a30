"""What comes before a move: copying ahead, keeping in step, and waiting for the operator's word.

The proxies copy ahead by themselves while they stand by, and then keep in step with the guest
(running/rounds.py): so however long the wait, the switch finds little that is stale. There is no
expiry.

The word comes over a Unix socket of the waiting process (`relocator migrate --go SOCKET`), or with
the time: a window, every day between two times of this host's clock.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import time as Clock
from pathlib import Path
from typing import Any

from relocator import config
from relocator.errors import ConfigError, RelocatorError, StateError
from relocator.moving.ends import Disk, of_all
from relocator.running.control import ControlServer

LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Window:
    """Every day from `start` to `end`, past midnight if `end` is the earlier one."""

    start: Clock
    end: Clock

    def holds(self, now: datetime) -> bool:
        """Whether `now` is within."""
        at = now.time()
        if self.start <= self.end:
            return self.start <= at < self.end
        return at >= self.start or at < self.end

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"


def parse_window(option: str, text: str) -> Window:
    """`02:00-04:00`.

    Raises:
        ConfigError: it is something else.
    """
    try:
        start, end = (datetime.strptime(part, "%H:%M").time() for part in text.split("-"))
    except ValueError as error:
        raise ConfigError(f"{option}={text}: write two times such as 02:00-04:00") from error
    if start == end:
        raise ConfigError(f"{option}={text}: the window is empty")
    return Window(start, end)


@dataclass(frozen=True)
class Conditions:
    """What a move waits for; nothing if all are false."""

    pre_seed: bool = False
    hold: Path | None = None
    window: Window | None = None


def _in_step(status: dict[str, Any]) -> bool:
    """Whether all was there once; what is missing by now is what was written since."""
    return bool(status["rounds"]) or status["present_blocks"] == status["total_blocks"]


def _copy_ahead(disk: Disk, status: dict[str, Any]) -> None:
    """See that it copies ahead, and keeps in step."""
    if status["background"] == "paused":
        disk.call("resume")
    elif status["background"] == "off":
        disk.call("set", background="on")
    if status["refresh_s"] is None:
        disk.call("set", refresh=str(config.REFRESH_S))


class Ahead:
    """Waits until a move may begin; `tell` hears what it waits for, and how the disks stand."""

    def __init__(
        self,
        disks: Sequence[Disk],
        conditions: Conditions,
        tell: Callable[[tuple[dict[str, Any] | None, ...], str], None],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._disks = disks
        self._conditions = conditions
        self._tell = tell
        self._now = now
        self._go = threading.Event()
        self._waits_for = ""

    def __call__(self) -> None:
        """Return when the move may begin.

        Raises:
            RelocatorError: a proxy is no longer in standby. One that is down is waited for.
        """
        if self._conditions == Conditions():
            return
        if self._conditions.hold is None:
            self._wait()
            return
        server = ControlServer(self._conditions.hold, self._answer, "--hold")
        server.start()
        try:
            self._wait()
        finally:
            server.stop()

    def _wait(self) -> None:
        silent = set(self._disks)
        while True:
            states = of_all(self._disks, Disk.status)
            for disk, state in zip(self._disks, states, strict=True):
                if state is None:
                    silent.add(disk)
                elif state["state"] != "standby":
                    raise RelocatorError(f"disk {disk.name}: its proxy is no longer in standby")
                elif disk in silent:
                    try:
                        _copy_ahead(disk, state)
                    except RelocatorError:
                        if disk.status() is not None:  # else it has ended again
                            raise
                    else:
                        silent.remove(disk)
            self._waits_for = self._reason(states, silent)
            self._tell(tuple(states), self._waits_for)
            if not self._waits_for:
                return
            self._go.wait(LOOK_EVERY_S)

    def _reason(self, states: Sequence[dict[str, Any] | None], silent: set[Disk]) -> str:
        """What is waited for; empty if nothing is. A proxy that is down is, whatever was wanted."""
        wanted = self._conditions
        if silent:
            names = ", ".join(sorted(disk.name for disk in silent))
            return f"disk {names}: its proxy doesn't answer; start it again"
        ahead = all(state is not None and _in_step(state) for state in states)
        if wanted.pre_seed and not ahead:
            troubles = [state["faults"]["copy"] for state in states if state is not None]
            why = next((f": {trouble}" for trouble in troubles if trouble is not None), "")
            return f"copying ahead{why}"
        if self._go.is_set() or (wanted.window is not None and wanted.window.holds(self._now())):
            return ""
        waits = []
        if wanted.hold is not None:
            waits.append(f"`relocator migrate --go {wanted.hold}`")
        if wanted.window is not None:
            waits.append(f"the window {wanted.window}")
        step = "in step" if ahead else "copying ahead"
        return f"{step}, waiting for {' or '.join(waits)}" if waits else ""

    def _answer(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """`go` begins the move, `status` says what is waited for."""
        if arguments or verb not in ("go", "status"):
            raise StateError(f"'{verb}' is unknown here; there are: go, status")
        if verb == "go":
            self._go.set()
        return {"waits_for": self._waits_for}
