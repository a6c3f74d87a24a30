"""Who takes part in a move, and what one process knows of it; what the steps share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from relocator.errors import RelocatorError
from relocator.moving import seen
from relocator.moving.ends import Disk, of_all
from relocator.moving.freezing import NoFreeze
from relocator.moving.monitor import Monitor
from relocator.moving.seen import Seen


@dataclass(frozen=True)
class Plan:
    """What the operator asked for.

    `uri` is where the source's QEMU sends the guest to, `incoming` where the destination's listens.
    `lost` names the sites ("source", "destination") of which it is known that nothing runs there.
    """

    uri: str
    incoming: str
    bandwidth_bytes_per_s: int | None = None
    downtime_limit_ms: int | None = None
    multifd_channels: int = 0
    verify: bool = True
    quit_source: bool = False
    wait_for_seal: bool = False
    lost: frozenset[str] = frozenset()

    @property
    def limits(self) -> dict[str, int]:
        """QEMU's parameters that the operator asked for."""
        asked = {
            "max_bandwidth": self.bandwidth_bytes_per_s,
            "downtime_limit": self.downtime_limit_ms,
        }
        return {name: value for name, value in asked.items() if value is not None}


@dataclass
class Parties:
    """Both QEMUs and the disks.

    `untold`: it is certain that no proxy was told to release its disk. `unsent`: it is certain that
    the source's QEMU was not told to send the last of the guest. `ran_at_source`: whether the guest
    ran, or had been stopped by somebody, when the move began; None if that wasn't seen.
    `limits_before`: QEMU's, at the source, before this process, or the one that it guards, changed
    them. `switched_on`: the destination's capabilities that this process switched on. `late`: of a
    disk that went back, or a QEMU, by its name, what may come yet. `guarded`: this process guards a
    move between these two QEMUs that was under way. `was_home`: it has seen the guest at the source
    since. `stopped_there`: no guest runs at the destination any more, for certain.
    """

    source: Monitor
    destination: Monitor
    disks: Sequence[Disk]
    guarded: bool = False
    stopped_there: bool = False
    was_home: bool = False
    untold: bool = False
    unsent: bool = False
    ran_at_source: bool | None = None
    limits_before: dict[str, int] = field(default_factory=dict)
    switched_on: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    late: dict[str, str] = field(default_factory=dict)
    freeze: NoFreeze = field(default_factory=NoFreeze)

    def look(self) -> Seen:
        """Ask everybody."""
        return seen.look(self.source, self.destination, self.disks)

    def statuses(self) -> list[dict[str, Any] | None]:
        """Each proxy's status; None for one that can't be asked."""
        return of_all(self.disks, Disk.status)


class MoveError(RelocatorError):
    """A move that could not be done: why, where guest and disks are now, and what to do next.

    `again`: the guest may stand still, and another try may change that.
    """

    def __init__(self, why: str, verdict: str, *, again: bool = False) -> None:
        super().__init__(f"{why}\n{verdict}")
        self.again = again
        self.why = why
        self.verdict = verdict
