"""The guest's file systems are frozen around the seal, so that the sealed disks are clean.

QEMU pauses a guest by itself once what is left of its memory is small, and a guest that stands
still can't be asked anything. So at first its downtime limit is 0 and its bandwidth such that the
end of the first pass can be seen coming. When little is left the file systems are frozen, while
next to nothing is sent; then QEMU is given the limits that are wanted, and pauses the guest. A pass
may end with more to be sent than was left when it began; then the guest is thawed, and frozen again
later.

It is thawed once it runs again, wherever that is: by this process, by its guard, or by the next one
that looks. Whatever fails, its writes have waited, none has been refused.
"""

import time
from typing import Any

from relocator.errors import RelocatorError
from relocator.moving import seen
from relocator.moving.agent import ANSWER_S, FREEZE_S, Agent
from relocator.moving.monitor import Monitor
from relocator.moving.seen import DestVm, Disks, Seen, SourceVm

#: QEMU's own, in ms and bytes a second: for what a move that was killed has left behind
_LIMITS = {"downtime_limit": 300, "max_bandwidth": 128 << 20}
#: all of a guest's memory is not sent in less, until it is frozen
_PASS_S = 4
#: so little is left to send that QEMU soon pauses the guest, or twice the downtime limit
_NEAR_S = 1.0
TRIES = 3
#: an agent that did not answer is asked again for so long
PATIENCE_S = 20.0
_AGAIN_S = 0.5
_THERE = (DestVm.RUNS, DestVm.STOPPED)


def limits_of(source: Monitor) -> dict[str, int]:
    """What limits the migrations of a QEMU; not what a move that was killed has left."""
    now = source.call("query-migrate-parameters")
    found = {name: now[name.replace("_", "-")] for name in _LIMITS}
    return found if found["downtime_limit"] else _LIMITS


class NoFreeze:
    """A move that freezes nothing."""

    #: why the guest could not be thawed yet
    trouble = ""

    def check(self, *, thaw: bool = True) -> None:
        """The guest can be frozen, and will be reached at the destination.

        `thaw`: what a move that was killed has left frozen is thawed.
        """
        del thaw

    def first_limits(self, wanted: dict[str, int]) -> dict[str, int]:
        """QEMU's parameters to begin with, for those that are `wanted`."""
        return wanted

    def later_limits(self, wanted: dict[str, int]) -> dict[str, int]:
        """The same where another process has begun the move."""
        return wanted

    def when_near(self, memory: dict[str, Any]) -> bool:
        """Freeze once little is left to send; whether that was done now."""
        del memory
        return False

    def check_done(self) -> None:
        """The guest stands still: it was frozen before."""

    def thaw_at_source(self) -> None:
        """The guest goes on at the source, or never left it."""

    def try_thaw(self) -> bool:
        """The guest runs at the destination, and its writes pass; whether it is not frozen now."""
        return True

    def thaw_at_destination(self) -> None:
        """The same, with patience."""

    def settle(self, found: Seen) -> None:
        """Thaw the guest where it is found."""

    def close(self) -> None:
        """Hang up."""


class Freeze(NoFreeze):
    """The guest of `source` is frozen by its agent at one end of its way, and thawed at either.

    `_frozen` is None where nobody knows, such as in a process that came later. What these methods
    raise is a RelocatorError.
    """

    def __init__(self, source: Monitor, destination: Monitor, here: Agent, there: Agent) -> None:
        self._source, self._destination = source, destination
        self._here, self._there = here, there
        self._frozen: bool | None = None
        self._since_s = 0.0
        self._passes = self._tries = 0
        self._wanted: dict[str, int] = {}

    def check(self, *, thaw: bool = True) -> None:
        """The guest can be frozen, and will be reached: at the destination no guest answers yet."""
        try:
            if self._here.frozen():  # then it allows nothing but to be thawed
                if not thaw:
                    raise RelocatorError(
                        "the guest's file systems are frozen: by another program, or by a move "
                        "that was killed; --settle thaws them"
                    )
                self._here.thaw()
            self._frozen = False
            self._here.check()
            self._there.connect()
        finally:
            self.close()  # others may use it while the move waits

    def first_limits(self, wanted: dict[str, int]) -> dict[str, int]:
        """A downtime limit of 0, and a bandwidth with which the first pass takes seconds."""
        self._wanted = wanted
        size_bytes = self._source.call("query-memory-size-summary")["base-memory"]
        return {
            "downtime_limit": 0,
            "max_bandwidth": min(self._wanted["max_bandwidth"], size_bytes // _PASS_S),
        }

    def later_limits(self, wanted: dict[str, int]) -> dict[str, int]:
        """The same, unless the guest is frozen already."""
        first = self.first_limits(wanted)
        self._frozen, self._since_s = self._here.frozen(), time.monotonic()
        return wanted if self._frozen else first

    def when_near(self, memory: dict[str, Any]) -> bool:
        """Freeze once little is left to send, by what QEMU says of the `memory`; see above."""
        ram = memory.get("ram", {})
        passes, left_s = ram.get("dirty-sync-count", 0), _left_s(ram)
        if self._frozen:
            if (passes > self._passes and left_s > FREEZE_S) or self._lasts_s > FREEZE_S:
                self._give_up()
            return False
        if left_s > max(_NEAR_S, 2 * self._wanted["downtime_limit"] / 1e3):
            if passes > 1:
                self._limit(max_bandwidth=self._wanted["max_bandwidth"])
            return False
        self._frozen, self._passes = None, passes
        # As long as the file systems are being frozen, QEMU must not come to an end.
        self._limit(max_bandwidth=max(1, int(ram["remaining"] / (2 * FREEZE_S))))
        self._here.freeze()
        self._frozen, self._since_s = True, time.monotonic()
        self._limit(**self._wanted)
        return True

    @property
    def _lasts_s(self) -> float:
        return time.monotonic() - self._since_s

    def _limit(self, **limits: int) -> None:
        self._source.call("migrate-set-parameters", **limits)

    def _give_up(self) -> None:
        """QEMU doesn't pause the guest in time: let it go on, and try again."""
        self._limit(downtime_limit=0)
        self._frozen = None
        self._here.thaw()
        self._frozen = False
        self._tries += 1
        if self._tries == TRIES:
            raise RelocatorError(
                f"QEMU did not pause the frozen guest within {FREEZE_S:.0f} s, {TRIES} times: its "
                "memory changes faster than it is sent; it was thawed. Give more --bandwidth or "
                "--downtime-limit, or move without --freeze"
            )

    def check_done(self) -> None:
        """The guest was frozen when QEMU paused it, or it isn't known that it wasn't."""
        if self._frozen is False:
            raise RelocatorError(
                "QEMU paused the guest before its file systems were frozen, for it had no memory "
                "left to send; give less --bandwidth"
            )

    def thaw_at_source(self) -> None:
        """The guest goes on at the source, or never left it; QEMU's limits are as they were."""
        if self._source.call("query-migrate-parameters")["downtime-limit"] == 0:
            self._limit(**(self._wanted or _LIMITS))
        self._thaw("source", self._here)

    def try_thaw(self) -> bool:
        """Once; if it fails, `trouble` says why. A guest that has ended needs no thawing."""
        if self._thawed(self._there):
            self.trouble = ""
        elif seen.dest_vm(self._destination) is DestVm.GONE:
            self._frozen, self.trouble = False, ""
        return not self.trouble

    def thaw_at_destination(self) -> None:
        """Until it is thawed, or for so long."""
        if not self.try_thaw():
            self._thaw("destination", self._there)

    def settle(self, found: Seen) -> None:
        """Where the guest is found to run, and can write, it is thawed."""
        if found.together in (Disks.RELEASED, Disks.COMPLETE):
            if found.destination is DestVm.RUNS:
                self.thaw_at_destination()
        elif found.source in (SourceVm.HOME, SourceVm.SENDING):
            self.thaw_at_source()
        elif (
            found.source is SourceVm.GONE
            and found.destination not in _THERE
            and not any(disk.sealed for disk in found.disks)  # its writes would be refused
        ):  # its agent may be reached for all that
            self._thaw("source", self._here, patience_s=0.0)

    def close(self) -> None:
        """Hang up, at both ends."""
        self._here.close()
        self._there.close()

    def _thaw(self, site: str, agent: Agent, patience_s: float | None = None) -> None:
        give_up_s = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
        while not self._thawed(agent):
            if time.monotonic() > give_up_s:
                raise RelocatorError(
                    f"the guest at the {site} may be frozen still: {self.trouble}; run the same "
                    "command with --settle, or `guest-fsfreeze-thaw` by hand"
                )
            time.sleep(_AGAIN_S)

    def _thawed(self, agent: Agent) -> bool:
        """Thaw, once; whether that could be done, or was not needed."""
        if self._frozen is not False:
            try:
                agent.thaw(ANSWER_S)
            except RelocatorError as error:
                self.trouble = str(error)
                return False
            self._frozen = False
        return True


def _left_s(ram: dict[str, Any]) -> float:
    """How long QEMU needs for the rest of the memory, at its rate."""
    bits_per_s = ram.get("mbps", 0) * 1e6
    return ram["remaining"] * 8 / bits_per_s if bits_per_s > 0 else float("inf")
