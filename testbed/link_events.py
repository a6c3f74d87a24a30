"""What happens to the WAN while a run goes on: cuts, and changes of rate, round-trip time and loss.

    5s:cut:10s      5 s after the switch nothing arrives any more, for 10 s
    5s:rate:10mbit  from then on the link has this rate (`rtt:200ms` and `loss:1%` likewise)

Several are separated by commas. Changes add up; one that falls into a cut shows when the cut ends.
A loss of whole frames wants a link without segmentation offload from the start (see testbed.wan):
the hosts' offload is not changed on the way.

A thread applies each in its time and logs it as `link-changed`; what went wrong there is raised by
`check` and at the end, which mends a link that is still cut.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

from testbed import wan
from testbed.wan import LinkProfile, ProfileError

PARAMETER = "link-events"
EXAMPLE = "such as 5s:cut:10s, 5s:rate:10mbit, 5s:rtt:200ms or 5s:loss:1%"
_CHANGES: dict[str, tuple[str, Callable[[str, str], float]]] = {
    "rate": ("rate_bits_per_s", wan.parse_rate_bits_per_s),
    "rtt": ("rtt_s", wan.parse_time_s),
    "loss": ("loss", wan.parse_fraction),
}

Interfaces = tuple[str, str]
Setter = Callable[[LinkProfile, Interfaces], None]


@dataclass(frozen=True, slots=True)
class Step:
    """The link from an instant on: its profile and whether it is cut; `change` says what is new."""

    at_s: float
    change: dict[str, Any]
    profile: LinkProfile
    is_cut: bool


def _parse_one(text: str) -> list[tuple[float, str, float]]:
    """(when, what, value) of one event; a cut is two, its beginning and its end."""
    parts = text.strip().split(":")
    if len(parts) != 3:
        raise ProfileError(PARAMETER, repr(text), f"give AT:WHAT:VALUE, {EXAMPLE}")
    at_s = wan.parse_time_s(PARAMETER, parts[0])
    what = parts[1]
    if what == "cut":
        for_s = wan.parse_time_s(PARAMETER, parts[2])
        if for_s <= 0:
            raise ProfileError(PARAMETER, repr(text), "a cut lasts longer than 0 s")
        return [(at_s, "cut", 1), (round(at_s + for_s, 9), "cut", 0)]
    if what not in _CHANGES:
        raise ProfileError(PARAMETER, repr(text), f"cut, rate, rtt or loss, {EXAMPLE}")
    return [(at_s, what, _CHANGES[what][1](PARAMETER, parts[2]))]


def parse(text: str, profile: LinkProfile) -> list[Step]:
    """The steps of a list of events on a link that starts as `profile`, in order of time."""
    given = [one for event in text.split(",") for one in _parse_one(event)] if text.strip() else []
    steps: list[Step] = []
    cuts = 0
    for at_s, what, value in sorted(given, key=lambda one: (one[0], one[1:] == ("cut", 1))):
        if what == "cut":
            cuts += 1 if value else -1
            if cuts > 1:
                raise ProfileError(PARAMETER, repr(text), "a cut begins within another")
            change: dict[str, Any] = {"cut": bool(value)}
        else:
            name = _CHANGES[what][0]
            change = {name: value}
            profile = replace(profile, **change)
        steps.append(Step(at_s, change, profile, cuts > 0))
    return steps


class Log(Protocol):
    """Where the changes are logged: the run's recorder."""

    def event(self, name: str, /, **fields: Any) -> float: ...


class Schedule:
    """Applies steps in their time, from `start` on; a context manager that ends the thread."""

    def __init__(
        self,
        steps: Iterable[Step],
        interfaces: Interfaces,
        log: Log,
        set_link: Setter = wan.set_link,
        cut: Setter = wan.cut,
    ) -> None:
        self._steps = list(steps)
        self._interfaces = interfaces
        self._log = log
        self._set_link, self._cut = set_link, cut
        self._in_force: Step | None = None
        self._failure: BaseException | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, zero_s: float) -> None:
        """Steps count from `zero_s` on the monotonic clock."""
        if self._steps:
            self._thread = threading.Thread(target=self._run, args=(zero_s,), name="link-events")
            self._thread.start()

    def check(self) -> None:
        """Raises what went wrong."""
        if self._failure is not None:
            raise RuntimeError(f"changing the link failed: {self._failure}") from self._failure

    def done(self) -> bool:
        """Whether every step has been taken."""
        return not self._steps or self._in_force is self._steps[-1]

    def _run(self, zero_s: float) -> None:
        try:
            for step in self._steps:
                if self._end.wait(max(0.0, zero_s + step.at_s - time.monotonic())):
                    return
                (self._cut if step.is_cut else self._set_link)(step.profile, self._interfaces)
                self._log.event("link-changed", **step.change)
                self._in_force = step
        except BaseException as error:
            self._failure = error

    def __enter__(self) -> Schedule:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        if self._in_force is not None and self._in_force.is_cut:
            self._set_link(self._in_force.profile, self._interfaces)
        if error is None:
            self.check()
