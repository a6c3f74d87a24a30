"""What happens to the WAN while a run goes on: cuts, and changes of rate, round-trip time and loss.

    5s:cut:10s      5 s after the switch nothing arrives any more, for 10 s
    5s:rate:10mbit  from then on the link has this rate (`rtt:200ms` and `loss:1%` likewise)

Changes add up; one that falls into a cut shows when the cut ends. A loss of whole frames wants a
link without segmentation offload from the start (see wan.py): the hosts' offload stays as it
is. `parse` reads one event, `steps` lays several out in time, and a `Schedule` applies them in a
thread and logs each as `link-changed`; what went wrong there is raised by `check` and at the end,
which mends a link that is still cut.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from testbed.ending import Helper
from testbed.network import wan
from testbed.network.wan import LinkProfile, ProfileError

PARAMETER = "event"
EXAMPLE = "such as 5s:cut:10s, 5s:rate:10mbit, 5s:rtt:200ms or 5s:loss:1%"
_CHANGES: dict[str, tuple[str, Callable[[str, str], float]]] = {
    "rate": ("rate_bits_per_s", wan.parse_rate_bits_per_s),
    "rtt": ("rtt_s", wan.parse_time_s),
    "loss": ("loss", wan.parse_fraction),
}

Interfaces = tuple[str, str]
Setter = Callable[[LinkProfile, Interfaces], None]


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """One event: `value` is a cut's duration, or the new rate, round-trip time or loss."""

    at_s: float
    what: str
    value: float


@dataclass(frozen=True, slots=True)
class Step:
    """The link from an instant on: its profile and whether it is cut; `change` says what is new."""

    at_s: float
    change: dict[str, Any]
    profile: LinkProfile
    is_cut: bool


def parse(text: str) -> LinkEvent:
    """One event, `AT:WHAT:VALUE`."""
    parts = text.strip().split(":")
    if len(parts) != 3:
        raise ProfileError(PARAMETER, repr(text), f"give AT:WHAT:VALUE, {EXAMPLE}")
    at, what, value = parts
    at_s = wan.parse_time_s(PARAMETER, at)
    if what == "cut":
        for_s = wan.parse_time_s(PARAMETER, value)
        if for_s <= 0:
            raise ProfileError(PARAMETER, repr(text), "a cut lasts longer than 0 s")
        return LinkEvent(at_s, what, for_s)
    if what not in _CHANGES:
        raise ProfileError(PARAMETER, repr(text), f"cut, rate, rtt or loss, {EXAMPLE}")
    return LinkEvent(at_s, what, _CHANGES[what][1](PARAMETER, value))


def _instants(event: LinkEvent) -> list[tuple[float, bool, LinkEvent]]:
    """(when, whether a cut begins, event): a cut is two instants, its end goes before another's
    beginning."""
    if event.what != "cut":
        return [(event.at_s, False, event)]
    return [(event.at_s, True, event), (round(event.at_s + event.value, 9), False, event)]


def steps(events: Iterable[LinkEvent], profile: LinkProfile) -> list[Step]:
    """The steps of events, in order of time, on a link that starts as `profile`."""
    instants = [one for event in events for one in _instants(event)]
    result: list[Step] = []
    is_cut = False
    for at_s, begins, event in sorted(instants, key=lambda one: one[:2]):
        if event.what == "cut":
            if begins and is_cut:
                right = "a cut begins when the one before it has ended"
                raise ProfileError(PARAMETER, f"{event.at_s:g}s:cut:{event.value:g}s", right)
            is_cut = begins
            change: dict[str, Any] = {"cut": begins}
        else:
            change = {_CHANGES[event.what][0]: event.value}
            profile = replace(profile, **change)
        result.append(Step(at_s, change, profile, is_cut))
    return result


class Log(Protocol):
    """Where the changes are logged: the run's recorder."""

    def event(self, name: str, /, **fields: Any) -> float: ...


class Schedule(Helper):
    """Applies steps in their time, from `start` on; a context manager that ends the thread."""

    doing = "changing the link"

    def __init__(
        self,
        planned: Iterable[Step],
        interfaces: Interfaces,
        log: Log,
        set_link: Setter = wan.set_link,
        cut: Setter = wan.cut,
    ) -> None:
        super().__init__()
        self._steps = list(planned)
        self._interfaces = interfaces
        self._log = log
        self._set_link, self._cut = set_link, cut
        self._in_force: Step | None = None
        self._zero_s = 0.0

    def start(self, zero_s: float) -> None:
        """Steps count from `zero_s` on the monotonic clock."""
        self._zero_s = zero_s
        if self._steps:
            self.begin()

    def done(self) -> bool:
        """Whether every step has been taken."""
        return not self._steps or self._in_force is self._steps[-1]

    def work(self) -> None:
        for step in self._steps:
            if self.ending.wait(max(0.0, self._zero_s + step.at_s - time.monotonic())):
                return
            (self._cut if step.is_cut else self._set_link)(step.profile, self._interfaces)
            self._log.event("link-changed", **step.change)
            self._in_force = step

    def end(self) -> None:
        """End the thread; mend a link that is still cut."""
        super().end()
        if self._in_force is not None and self._in_force.is_cut:
            self._set_link(self._in_force.profile, self._interfaces)
