"""What each event does to a world in motion.

Each is a job that begins a fault, waits, and ends it. An event that makes no sense at its moment
does nothing: so a schedule from which events were taken away is a schedule still.
"""

from collections.abc import Callable
from contextlib import suppress

from testbed.hosts.supervise import ProcessError
from tests.campaign import between, operator
from tests.campaign.motion import Job, Motion
from tests.campaign.sites import Site
from tests.campaign.world import SPARED, Event


def apply(motion: Motion, event: Event) -> None:
    """The event happens."""
    handler = _FAULTS.get(event.what)
    motion.add(operator.job(motion, event) if handler is None else handler(motion, event))


def _cut(motion: Motion, event: Event) -> Job:
    status = motion.states.get(motion.leg[1]) or {}
    if status.get("state") == "activating":
        motion.journal.reach("cut while sealing")
    if status.get("rounds") and status["state"] == "standby" and status.get("behind_bytes"):
        motion.journal.reach("cut in a round")
    yield from _with_link(motion, event)


def _with_link(motion: Motion, event: Event) -> Job:
    motion.link.begin(event)
    yield from motion.wait(event.for_s)
    motion.link.end(event)


def _kill(motion: Motion, event: Event) -> Job:
    if event.who == "guest":
        yield from _kill_guest(motion, event)
        return
    site = motion.sites.get(event.who)
    if site is None or not site.server.wanted:
        return
    status = motion.sites[motion.leg[1]].status() or {}
    if status.get("state") == "activating":
        end = "source" if event.who == motion.leg[0] else "destination"
        motion.journal.reach(f"{end} killed while sealing")
    if motion.returning:
        motion.journal.reach("killed on the way back")
    if (motion.states.get(site.name) or {}).get("state") == "relaying":
        motion.journal.reach("killed while relaying")
    site.server.kill()
    motion.server_died(site.name)
    motion.restart(site.name, event.for_s)


def _kill_guest(motion: Motion, event: Event) -> Job:
    guest = motion.guest
    if guest is None:
        return
    guest.kill()
    motion.abandon(guest)
    yield from motion.wait(event.for_s)
    if motion.guest is None and not motion.busy:
        motion.start_guest(motion.at)


def _power(motion: Motion, event: Event) -> Job:
    site = motion.sites.get(event.who)
    if site is None or not site.has_begun:
        return
    if not site.server.wanted:
        motion.journal.reach("power failure between two lives")
    yield from _lose_power(motion, site, event.for_s)


def _lose_power(motion: Motion, site: Site, for_s: float) -> Job:
    """Power fails at a site; a server that ran there starts again after `for_s`."""
    ran_server = site.server.wanted
    site.server.kill()
    motion.server_died(site.name)
    elsewhere = motion.authority not in (None, site.name)
    ran = False if elsewhere else motion.kill_clients()
    if not elsewhere:
        motion.ledger.power_failed(site.name)
    elif site.name == motion.leg[0]:
        motion.journal.reach("power failure at a source that has moved")
    if motion.returning:
        motion.journal.reach("power failure on the way back")
    site.storage.power_failure()
    site.server.new_boot()
    if not elsewhere:
        motion.start_clients(ran)
    if not ran_server:
        return
    copied_bytes = _copied_bytes(site)
    yield from motion.wait(for_s)
    motion.restart(site.name, 0.0)
    if not copied_bytes:
        return
    while (status := site.status()) is None:
        yield
    if status["state"] != "complete":
        motion.journal.reach("power failure while copying")
        if copied_bytes > status["present_blocks"] * status["block_bytes"]:
            motion.journal.reach("power failure between data and map")


def _copied_bytes(site: Site) -> int:
    """How much of a copy is on its disk, whatever its maps say; 0 where nothing is copied."""
    if site.source is None or not site.image.exists():
        return 0
    data, block = site.image.read_bytes(), site.world.block_bytes
    return sum(block for at in range(0, len(data), block) if any(data[at : at + block]))


def _on_store(
    begin: Callable[[Motion, Event], None], end: Callable[[Motion, Event], None], *, fails: bool
) -> Callable[[Motion, Event], Job]:
    """A fault of a store; while it `fails`, requests may fail."""

    def job(motion: Motion, event: Event) -> Job:
        site = motion.sites.get(event.who)
        if site is None or not site.server.wanted:
            return
        if fails:
            site.store_fails_until_s = motion.journal.now_s + event.for_s + 1.0
        begin(motion, event)
        yield from motion.wait(event.for_s)
        with suppress(ProcessError):
            end(motion, event)

    return job


def _fill(motion: Motion, event: Event) -> None:
    motion.sites[event.who].storage.fill(spared=event.detail == SPARED)
    motion.journal.reach("a store full")


def _free(motion: Motion, event: Event) -> None:
    motion.sites[event.who].storage.free()


def _slow(motion: Motion, event: Event) -> None:
    motion.sites[event.who].storage.slow(event.detail)


def _healthy(motion: Motion, event: Event) -> None:
    motion.sites[event.who].storage.healthy()


def _fails(motion: Motion, event: Event) -> None:
    motion.sites[event.who].storage.failing()
    motion.journal.reach("a store failing")


def _repair(motion: Motion, event: Event) -> None:
    """A disk that has failed is looked at by an operator: the site is booted again."""
    motion.add(_lose_power(motion, motion.sites[event.who], 0.2))


_FAULTS: dict[str, Callable[[Motion, Event], Job]] = {
    "cut": _cut,
    "blackhole": _cut,
    "rate": _with_link,
    "loss": _with_link,
    "kill": _kill,
    "power": _power,
    "full": _on_store(_fill, _free, fails=True),
    "slow": _on_store(_slow, _healthy, fails=False),
    "failing": _on_store(_fails, _repair, fails=True),
    "outside": between.outside,
    "impostor": between.impostor,
}
