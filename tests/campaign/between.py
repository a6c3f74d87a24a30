"""What happens between two lives of a server: something else has the image, or the address.

Both hold the operator's hands meanwhile, as far as moves go; verbs come at any moment.
"""

import json
import os
import random
import time
from pathlib import Path

from tests.campaign.guest import LENGTHS
from tests.campaign.ledger import first_number
from tests.campaign.motion import Job, Motion
from tests.campaign.sites import Site
from tests.campaign.verbs import Call
from tests.campaign.world import Event
from tests.support.stamps import SECTOR_BYTES, stamp, written

_OTHER = b"another!"


def outside(motion: Motion, event: Event) -> Job:
    """A server is ended as the units end it, its image is written, and it starts again.

    As where the VM is booted from the image itself; so only where all of the disk is, and nowhere
    else may be.
    """
    site = motion.sites.get(event.who)
    if site is None or motion.busy or motion.authority != site.name:
        return
    if (site.status() or {}).get("state") != "complete":
        return
    motion.busy = True
    try:
        ran = motion.kill_clients()
        last = Call(site.server.control, "flush", last=True)
        while not last.done():
            yield
        was_left = last.error is None and site.server.running
        site.server.kill()
        motion.server_died(site.name)
        if was_left and not _is_sealed(site):
            _write(motion, site)
            motion.journal.reach("an image written by something else")
        yield from motion.wait(event.for_s)
        motion.restart(site.name, 0.0)
        motion.start_clients(ran)
    finally:
        motion.busy = False


def _write(motion: Motion, site: Site) -> None:
    """Durably, somewhere in the VM's part of the disk; the ledger knows it as the VM's."""
    life = motion.new_life()
    choose = random.Random(f"{motion.world.seed}/{life}")
    number, count = first_number(0, life) + 1, choose.choice(LENGTHS)
    first = choose.randrange(motion.world.sectors // 2 - count)
    now_s = time.monotonic()
    motion.ledger.note(now_s, "send", number, first, count, 0, site.name)
    with site.image.open("r+b") as image:
        image.seek(first * SECTOR_BYTES)
        image.write(written(number, first, count))
        image.flush()
        os.fsync(image.fileno())
    motion.ledger.note(now_s, "ack", number, 1)
    motion.journal.note("outside", at=site.name, first=first, count=count)


def _is_sealed(site: Site) -> bool:
    return bool(json.loads(site.meta.read_bytes())["seal"])


def impostor(motion: Motion, event: Event) -> Job:
    """The source's machine is gone, and another disk of the same size is served at its address."""
    site = motion.sites.get(event.who)
    if site is None or motion.busy or site.name != motion.leg[0] or not site.server.wanted:
        return
    motion.busy = True
    try:
        ran, motion.closed = motion.kill_clients(site.name), site.name
        site.server.kill()
        motion.server_died(site.name)
        disk = motion.directory / f"another-{site.name}.img"
        content = b"".join(stamp(_OTHER, 0, at) for at in range(motion.world.sectors))
        disk.write_bytes(content)
        motion.impostor = site.impostor(disk)
        motion.impostor.start()
        motion.journal.reach("another disk at the source's address")
        yield from motion.wait(event.for_s)
        motion.impostor.kill()
        if disk.read_bytes() != content or _was_taken(disk):
            motion.journal.blame(f"another disk, found at {site.name}'s address, was taken over")
        motion.restart(site.name, 0.0)
        motion.closed = None
        motion.start_clients(ran, site.name)
    finally:
        motion.busy = False


def _was_taken(disk: Path) -> bool:
    """Whether somebody has sealed it."""
    meta = Path(f"{disk}.maps/meta.json")
    return meta.exists() and bool(json.loads(meta.read_bytes())["seal"])
