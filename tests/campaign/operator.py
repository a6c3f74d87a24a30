"""What the operator does: moves the VM, and uses verbs, now and then at the wrong moment."""

from collections.abc import Callable
from typing import Any

from tests.campaign.motion import SETTLED, Job, Motion
from tests.campaign.verbs import Call
from tests.campaign.world import Event

#: an operator who sees no answer for so long looks again
LOOK_AGAIN_S = 2.0
#: a disk that is to go back has to be complete first; the operator waits for so long
_MOST_WAIT_S = 10.0
_TRIES = 10


def job(motion: Motion, event: Event) -> Job:
    """What the operator does at this event."""
    procedure = _PROCEDURES.get(event.what)
    if procedure is None:
        at = motion.leg[0] if event.what in ("seal", "unseal") else motion.leg[1]
        return _verb(motion, at, event.what, **(event.detail or {}))
    waits = event.what == "onward"
    return _alone(motion, procedure(motion, **(event.detail or {})), waits=waits)


def _alone(motion: Motion, procedure: Job, *, waits: bool) -> Job:
    """There is one operator: what comes while it is busy is done later, or not at all."""
    while motion.busy:
        if not waits:
            return
        yield
    motion.busy = True
    try:
        yield from procedure
    finally:
        motion.busy = False


def _call(motion: Motion, at: str, verb: str, calls: list[Call], **arguments: Any) -> Job:
    call = Call(motion.sites[at].server.control, verb, **arguments)
    calls.append(call)
    while not call.done():
        yield
    motion.journal.note("verb", at=at, verb=verb, arguments=arguments, error=call.error)


def _verb(motion: Motion, at: str, verb: str, **arguments: Any) -> Job:
    """A verb, at any moment."""
    calls: list[Call] = []
    before = motion.authority
    if verb == "activate":
        motion.uncertain()
    yield from _call(motion, at, verb, calls, **arguments)
    if verb == "unseal" and calls[0].error is None:
        motion.promised = False
        if before == motion.leg[1]:
            motion.journal.blame(f"{at} was unsealed while {before} had the disk")


def _move(motion: Motion, hold_s: float = 0.0, back: bool = False) -> Job:
    """The VM and its disk go on to the leg's destination; for `hold_s` its writes are held there.

    With `back` they are given back then.
    """
    source, destination = motion.leg
    if motion.at == destination:
        return
    yield from motion.stop_guest()
    motion.uncertain()
    calls: list[Call] = []
    yield from _call(motion, destination, "activate", calls, hold=hold_s > 0)
    if calls[0].error is not None:
        motion.start_guest(source)
        return
    motion.promised = True
    motion.start_guest(destination)
    if not hold_s:
        return
    yield from motion.wait(hold_s)
    if back:
        yield from _withdraw(motion)
        return
    for _ in range(_TRIES):
        yield from _call(motion, destination, "release", calls)
        if calls[-1].error is None:
            return
        yield from motion.wait(0.3)


def _withdraw(motion: Motion) -> Job:
    """The VM goes back to the source, if it wrote nothing at the destination."""
    source, destination = motion.leg
    before = motion.at
    yield from motion.stop_guest()
    calls: list[Call] = []
    known, motion.authority = motion.authority, None
    promised, motion.promised = motion.promised, False
    yield from _call(motion, destination, "withdraw", calls)
    error = calls[0].error or ""
    if not error or error.startswith("withdrawn here"):  # the source is told later
        motion.given_back(source)
        before = source
        motion.journal.reach("withdrawn")
        if error:
            yield from _until_told(motion, source)
    elif "refused" in error and motion.authority is None:
        motion.authority, motion.promised = known, promised
    motion.start_guest(before)


def _until_told(motion: Motion, source: str) -> Job:
    """No write passes at the source yet; no longer, if the disk may have changed hands again."""
    while motion.authority == source:
        status = motion.sites[source].status()
        if status is not None and status["state"] not in ("sealed", "relaying"):
            return
        yield


def _onward(motion: Motion) -> Job:
    """The next leg begins; if it is the way back, once the disk has arrived."""
    route, (_, here) = motion.world.route, motion.leg
    at = motion.leg_number + 1
    if at >= len(route) - 1:
        return
    back = route[at + 1] in route[: at + 1]
    if back:
        yield from arrive(motion, [])
    if motion.authority != here:
        return
    if back:  # what diverged must be known, so all must be here
        give_up_s = motion.journal.now_s + _MOST_WAIT_S
        while (motion.states.get(here) or {}).get("state") != "complete":
            if motion.journal.now_s > give_up_s:
                return
            yield
        old = motion.sites[route[at + 1]].server
        old.kill()
        motion.server_died(old.name)
    motion.leg_number = at
    motion.begin_leg(here, route[at + 1])


_PROCEDURES: dict[str, Callable[..., Job]] = {
    "move": _move,
    "withdraw": _withdraw,
    "onward": _onward,
}


def arrive(motion: Motion, done: list[bool]) -> Job:
    """The move is brought to its end, as an operator would; true is appended to `done` then."""
    destination = motion.leg[1]
    if motion.at != destination:
        yield from motion.stop_guest()
    while True:
        status = motion.sites[destination].status() or {}
        if status.get("state") in SETTLED:
            break
        motion.uncertain()
        calls: list[Call] = []
        yield from _call(motion, destination, "activate", calls)
        yield from motion.wait(LOOK_AGAIN_S)
    motion.taken_over(destination)
    if motion.at != destination or motion.guest is None:
        motion.start_guest(destination)
    for verb, arguments in (("resume", {}), ("set", {"rate": "none", "background": "on"})):
        for at in dict.fromkeys(motion.leg):
            yield from _call(motion, at, verb, [], **arguments)
    done.append(True)
