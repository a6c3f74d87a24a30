"""One world, from its start to the comparison of every byte.

When the events are over and what they broke is mended, the disk has to become complete at the last
site that it was on its way to. Then every byte is compared: through the server, in the image, and
through a server once more after a power failure.
"""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from testbed.network.topology import Sites
from tests.campaign import faults, operator
from tests.campaign.journal import Failed
from tests.campaign.motion import TURN_S, Job, Motion, tail
from tests.campaign.schedule import Schedule
from tests.campaign.server import enter_network
from tests.campaign.sites import Site
from tests.campaign.world import PATIENCE_S, World

LIVELY_S = 150.0
_SUSPICIOUS = ("Traceback", "has died", "Assertion")


def run(world: World, directory: Path, network: Sites, plugin: Path) -> dict[str, Any]:
    """Run it with servers of this `plugin`; what happened, as JSON.

    `ok`, `wrong` (why not), `seconds`, `writes`, `reached` (state: when), `notes` (s, what, more).
    """
    motion = Motion(world, directory, network, plugin)
    try:
        with Schedule(world.seed, world.change_s) if world.change_s else nullcontext():
            _go(motion)
    except Failed:
        pass
    except Exception as error:
        motion.journal.blame(f"the campaign itself failed: {error!r}")
    finally:
        _end(motion)
    journal = motion.journal
    return {
        "seed": world.seed,
        "ok": not journal.wrong,
        "wrong": journal.wrong,
        "seconds": round(journal.now_s, 3),
        "reached": journal.reached,
        "writes": len(motion.ledger.sent),
        "cpu_s": [round(one, 2) for one in os.times()[:4]],
        "notes": journal.notes,
    }


def _go(motion: Motion) -> None:
    """What comes after a leg's beginning comes so much later as that has to be waited for."""
    motion.build()
    late_s = 0.0
    for event in motion.world.events:
        while motion.journal.now_s < event.at_s + late_s:
            motion.turn()
        motion.journal.note("event", text=str(event))
        if event.what == "onward":
            late_s += _next_leg(motion, operator.job(motion, event))
        else:
            faults.apply(motion, event)
    while motion.journal.now_s < motion.world.lasts_s + late_s:
        motion.turn()
    _arrive(motion)
    _compare(motion)


def _next_leg(motion: Motion, begins: Job) -> float:
    """Let it begin, or be given up; the seconds that this took."""
    asked_s = motion.journal.now_s
    _until(motion, lambda: next(begins, True) is not None, "the next leg to begin")
    return motion.journal.now_s - asked_s


def _until(motion: Motion, ready: Callable[[], bool], what: str) -> None:
    give_up_s = motion.journal.now_s + LIVELY_S
    while not ready():
        motion.turn()
        if motion.journal.now_s > give_up_s:
            where = ", ".join(
                f"{name} {status['state']} {status.get('error')}"
                for name, status in motion.states.items()
            )
            motion.journal.blame(f"no progress: still waiting for {what}: {where}")
            raise Failed(what)


def _arrive(motion: Motion) -> None:
    """No more faults; the disk has to arrive."""
    _until(motion, lambda: motion.idle, "the events to end")
    motion.journal.note("mended")
    done: list[bool] = []
    motion.add(operator.arrive(motion, done))
    _until(motion, lambda: bool(done), f"the disk to be active at {motion.leg[1]}")

    def complete() -> bool:
        status = motion.states.get(motion.leg[1])
        return status is not None and status["state"] == "complete"

    _until(motion, complete, f"{motion.leg[1]} to be complete")
    motion.journal.note("complete")


def _compare(motion: Motion) -> None:
    """Every byte, three times."""
    for guest in (motion.guest, *motion.strangers.values()):
        if guest is not None:
            guest.stop()
    give_up_s = motion.journal.now_s + PATIENCE_S + 5
    while motion.clients_run and motion.journal.now_s < give_up_s:
        motion.catch_up()
        time.sleep(TURN_S)
    motion.kill_clients()
    last = motion.sites[motion.leg[1]]
    for site in motion.sites.values():
        if site is not last:
            site.server.kill()
            motion.server_died(site.name)
    _read(motion, last, "through the server", flush=True)
    last.server.kill()
    motion.server_died(last.name)
    if wrong := motion.ledger.wrong(0, last.image.read_bytes()):
        motion.journal.blame(f"the image: {wrong}")
    last.storage.power_failure()
    last.server.new_boot()
    last.server.start()
    _read(motion, last, "after a power failure")
    motion.journal.note("compared")


def _read(motion: Motion, site: Site, how: str, *, flush: bool = False) -> None:
    """All of the disk, by a process that is in the site's network."""
    give_up_s = motion.journal.now_s + 20.0
    while site.status() is None and motion.journal.now_s < give_up_s:
        time.sleep(TURN_S)
    path = motion.directory / "read"
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            enter_network(site.host_pid)
            _read_all(site, path, flush)
            os._exit(0)
        os._exit(1)
    if os.waitpid(pid, 0)[1] != 0:
        motion.journal.blame(f"the disk can't be read {how}: {tail(site.server.log)}")
        raise Failed(how)
    if wrong := motion.ledger.wrong(0, path.read_bytes()):
        motion.journal.blame(f"{how}: {wrong}")


def _read_all(site: Site, path: Path, flush: bool) -> None:
    import nbd

    handle = nbd.NBD()
    handle.connect_tcp(site.address, str(site.port))
    if flush:
        handle.flush()
    size, step = handle.get_size(), 1 << 20
    with path.open("wb") as file:
        for at in range(0, size, step):
            file.write(handle.pread(min(step, size - at), at))
    handle.shutdown()


def _end(motion: Motion) -> None:
    """Take everything down, and look into the logs."""
    motion.kill_clients()
    for site in motion.sites.values():
        site.server.kill()
    if motion.impostor is not None:
        motion.impostor.kill()
    motion.link.mend()
    for site in motion.sites.values():
        with suppress(Exception):
            site.storage.healthy()
        site.storage.remove()
        log = site.server.log
        for line in log.read_text(errors="replace").splitlines() if log.exists() else []:
            if any(word in line for word in _SUSPICIOUS):
                motion.journal.note("log", who=site.name, text=line)
