"""The stages of a move as data: how each is known, who has the guest, what comes next.

`find` reads a stage off what is seen (first rule that fits), `NEXT` leads from one to the next
while a move is under way. A failure before the release leads back, after it nowhere: the
destination has the disks.

    home -> starting -> memory -> paused -> switching -> arrived -> moved -> complete -> done
      ^         |          |         |          |           |
      +---------+-- returning <------+----------+-----------+       (anything fails, Ctrl-C)

`lost` and `conflict` are found, never reached: there a person is told what is to be done.
"""

from dataclasses import dataclass
from enum import StrEnum

from relocator.moving.seen import DestVm, Disks, Seen, SourceVm


class Stage(StrEnum):
    """Where a move stands."""

    HOME = "home"
    STARTING = "starting"
    MEMORY = "memory"
    PAUSED = "paused"
    SWITCHING = "switching"
    ARRIVED = "arrived"
    MOVED = "moved"
    COMPLETE = "complete"
    DONE = "done"
    RETURNING = "returning"
    LOST = "lost"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class About:
    """What a person is told of a stage: what goes on, and at which side the disks are written."""

    going_on: str
    owner: str


ABOUT: dict[Stage, About] = {
    Stage.HOME: About("getting ready", "source"),
    Stage.STARTING: About("telling both QEMUs to begin", "source"),
    Stage.MEMORY: About("sending the guest's memory", "source"),
    Stage.PAUSED: About("the guest stands still; its disks are taken over", "source"),
    Stage.SWITCHING: About("sending the rest of the guest's state", "nobody"),
    Stage.ARRIVED: About("the guest runs at the destination; its writes wait", "nobody"),
    Stage.MOVED: About("the guest runs at the destination; copying its disks", "destination"),
    Stage.COMPLETE: About("every block is at the destination", "destination"),
    Stage.DONE: About("done", "destination"),
    Stage.RETURNING: About("going back to the source", "source"),
    Stage.LOST: About("the source's QEMU can't be reached", "source"),
    Stage.CONFLICT: About("the guest runs at the source, its disks are elsewhere", "destination"),
}

#: stage -> outcome of its step -> stage after it
NEXT: dict[Stage, dict[str, Stage]] = {
    Stage.HOME: {"ready": Stage.STARTING},
    Stage.STARTING: {"begun": Stage.MEMORY, "failed": Stage.RETURNING},
    Stage.MEMORY: {"paused": Stage.PAUSED, "failed": Stage.RETURNING},
    Stage.PAUSED: {"continued": Stage.SWITCHING, "failed": Stage.RETURNING},
    Stage.SWITCHING: {"runs there": Stage.ARRIVED, "failed": Stage.RETURNING},
    Stage.ARRIVED: {"released": Stage.MOVED, "failed": Stage.RETURNING},
    Stage.MOVED: {"all here": Stage.COMPLETE},
    Stage.COMPLETE: {"proven": Stage.DONE},
    Stage.RETURNING: {"back": Stage.HOME},
}

#: Stages from which a failure leads back.
REVOCABLE = frozenset(stage for stage, after in NEXT.items() if "failed" in after)


@dataclass(frozen=True)
class Rule:
    """A stage, and what is seen when a move stands there; None: whatever."""

    stage: Stage
    source: frozenset[SourceVm] | None
    destination: frozenset[DestVm] | None
    disks: frozenset[Disks] | None

    def fits(self, seen: Seen) -> bool:
        """Whether that is what is seen."""
        return (
            (self.source is None or seen.source in self.source)
            and (self.destination is None or seen.destination in self.destination)
            and (self.disks is None or seen.together in self.disks)
        )


_HOME, _GONE, _SENT = (frozenset({vm}) for vm in (SourceVm.HOME, SourceVm.GONE, SourceVm.SENT))
_ARRIVED = frozenset({DestVm.RUNS, DestVm.STOPPED})
_COMING = frozenset({DestVm.WAITING, DestVm.RECEIVING})
_TAKEN = frozenset({Disks.RELEASED, Disks.COMPLETE})
_HELD = frozenset({Disks.ARMED, Disks.HELD})
_AS_ONE = frozenset(Disks) - {Disks.PARTLY}
_UNTOUCHED = frozenset({Disks.STANDBY, Disks.UNKNOWN})
_UNSEALED = _UNTOUCHED | {Disks.ARMED}

RULES = (
    Rule(Stage.CONFLICT, _HOME, None, _TAKEN),
    Rule(Stage.COMPLETE, None, None, frozenset({Disks.COMPLETE})),
    Rule(Stage.MOVED, None, None, frozenset({Disks.RELEASED})),
    Rule(Stage.MEMORY, frozenset({SourceVm.SENDING}), None, _UNSEALED),
    Rule(Stage.RETURNING, frozenset({SourceVm.SENDING}), None, None),
    Rule(Stage.PAUSED, frozenset({SourceVm.PAUSED}), None, _AS_ONE),
    Rule(Stage.RETURNING, frozenset({SourceVm.PAUSED}), None, None),
    Rule(Stage.SWITCHING, frozenset({SourceVm.LAST}), None, _HELD),
    Rule(Stage.RETURNING, frozenset({SourceVm.LAST}), None, None),
    Rule(Stage.ARRIVED, _SENT, _ARRIVED, _HELD),
    Rule(Stage.SWITCHING, _SENT, _COMING, _HELD),
    Rule(Stage.RETURNING, _SENT, None, None),
    Rule(Stage.HOME, _HOME, None, _UNTOUCHED),
    Rule(Stage.RETURNING, _HOME, None, None),
    Rule(Stage.ARRIVED, _GONE, _ARRIVED, _HELD),
    Rule(Stage.LOST, _GONE, None, None),
)


#: Stages at which a move may be left: the guest stands still in none of them for lack of a word.
_AT_REST = frozenset({Stage.HOME, Stage.MOVED, Stage.COMPLETE, Stage.CONFLICT})


def at_rest(seen: Seen) -> bool:
    """Whether one side has the guest and all disks, so that nothing needs to be done at once."""
    if find(seen) not in _AT_REST:
        return False
    return seen.together is not Disks.RELEASED or not any(disk.held for disk in seen.disks)


def find(seen: Seen) -> Stage:
    """Where a move stands of which this is seen."""
    return next(rule.stage for rule in RULES if rule.fits(seen))
