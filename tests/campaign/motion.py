"""A world in motion: its sites, its clients, and what is known of them.

One thread drives all of it: *jobs* are generators that yield whenever they wait, and go on at the
next turn. So what happens depends on the virtual clock only.

What is checked all along: what clients read (guest.py), that only one site acknowledges writes,
that requests fail only for a reason.
"""

import os
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from testbed.network.topology import Sites
from tests.campaign.guest import Guest, Work
from tests.campaign.journal import ABORTED, Failed, Journal
from tests.campaign.ledger import Ledger
from tests.campaign.link import Link
from tests.campaign.server import Server, enter_network
from tests.campaign.sites import Site
from tests.campaign.storage import Storage
from tests.campaign.world import World
from tests.support.stamps import SECTOR_BYTES

Job = Generator[None, None, None]
TURN_S = 0.02
SAMPLE_S = 0.2
RESTART_S = 0.3
SHOWN = ("state", "present_blocks", "held", "rounds", "seal_confirmed")
SETTLED = ("active", "complete", "sealed", "relaying")
#: most that a guest which is to stop waits for its replies
DRAIN_S = 3.0
_ABORT = "raw_send_socket: Assertion"
_STRANGERS_PART = 8  # of the disk belongs to each of two strangers


class Motion:
    """A world that runs, in `directory`, which holds `source.img` and `empty.fs` a level above."""

    def __init__(self, world: World, directory: Path, network: Sites, plugin: Path) -> None:
        self.world = world
        self.directory = directory
        self._network, self._plugin = network, plugin
        self.journal = Journal()
        self.ledger = Ledger(world.sectors)
        self.sites: dict[str, Site] = {}
        self.link = Link(world)
        self.leg = "A", "B"
        self.leg_number = 0
        #: which site may acknowledge writes; None while that may be either of the leg
        self.authority: str | None = "A"
        self._since_s = 0.0
        self.jobs: list[Job] = []
        self.guest: Guest | None = None
        self.strangers: dict[str, Guest] = {}
        self.impostor: Server | None = None  # of another disk, at a site's address
        self.closed: str | None = None  # the site whose clients wait until that is over
        self.at = "A"  # where the VM is
        self.states: dict[str, dict[str, Any]] = {}
        self._lives = 0
        self._watched: list[Guest] = []
        self._sampled_s = 0.0
        #: the destination has said that the VM may go on there
        self.promised = False
        #: an operator's procedure that is under way; there is one operator
        self.busy = False

    # -- what stands -----------------------------------------------------------------------------

    def build(self) -> None:
        """The sites, with the disk at A, and the proxy in standby at B."""
        template, source = self.directory.parent / "empty.fs", self.directory.parent / "source.img"
        writeback_cs = round(self.world.writeback_s * 100)
        Path("/proc/sys/vm/dirty_expire_centisecs").write_text(f"{writeback_cs}\n")
        Path("/proc/sys/vm/dirty_writeback_centisecs").write_text(f"{max(5, writeback_cs // 2)}\n")
        for name in sorted(set(self.world.route)):
            storage = Storage(name, self.directory, template)
            self.sites[name] = Site(name, self.world, storage, self._network, self._plugin)
        size = self.world.size_kib << 10
        with source.open("rb") as whole, self.sites["A"].image.open("wb") as disk:
            disk.write(whole.read(size))
            disk.flush()
            os.fsync(disk.fileno())
        self.sites["A"].server.start()
        self.add(self._keep_running())
        while self.sites["A"].status() is None:
            self.turn()
        self.journal.begin()
        self._sampled_s = 0.0
        self.begin_leg("A", "B")
        self.start_guest("A")
        for number, name in enumerate("AB"):
            self.strangers[name] = self._client(name, number + 1)

    def begin_leg(self, source: str, destination: str) -> None:
        """The destination's proxy starts, in standby."""
        self.leg = source, destination
        self.promised = False
        self.states.pop(destination, None)  # of a life before, in another part
        self.sites[destination].source = self.sites[source]
        self.sites[destination].server.start()
        self.journal.note("leg", source=source, destination=destination)

    def start_guest(self, site: str) -> None:
        """The VM runs at `site`, and nowhere else."""
        if self.guest is not None:
            self.guest.kill()
            self.abandon(self.guest)
        self.at = site
        self.guest = self._client(site, 0)
        self.journal.note("guest", at=site)

    def new_life(self) -> int:
        """Of whoever writes next: the numbers of its writes are above those of all before."""
        self._lives += 1
        return self._lives

    def _client(self, site: str, client: int) -> Guest:
        life = self.new_life()
        sectors, block = self.world.sectors, self.world.block_bytes // SECTOR_BYTES
        part = sectors // _STRANGERS_PART
        ends = (0, sectors - 2 * part, sectors - part, sectors)
        regions = ((ends[0], ends[1]), (ends[1], ends[2]), (ends[2], ends[3]))
        first, end = regions[client]
        depth, pace_s = (self.world.depth, self.world.pace_s) if client == 0 else (1, 0.25)
        where = self.sites[site]
        log = self.directory / f"guest-{life}.log"
        work = Work(client, first, end, depth, pace_s, block)
        guest = Guest(work, life, site, (where.address, where.port), log)
        guest.start(self.ledger, self.world.seed, lambda: enter_network(where.host_pid))
        self._watched.append(guest)
        return guest

    @property
    def returning(self) -> bool:
        """Whether the disk is on its way back, and not there yet."""
        _, destination = self.leg
        return self.leg_number > 0 and destination == "A" and self.authority != "A"

    # -- the clock -------------------------------------------------------------------------------

    def add(self, job: Iterator[None]) -> None:
        """Let a job go on at every turn."""
        self.jobs.append(job)  # type: ignore[arg-type]

    @property
    def idle(self) -> bool:
        """Whether all that has begun has ended; the service manager doesn't."""
        return len(self.jobs) == 1

    def turn(self) -> None:
        """Everybody goes on, and a little time passes."""
        self.catch_up()
        for job in list(self.jobs):
            try:
                next(job)
            except StopIteration:
                self.jobs.remove(job)
        if self.journal.now_s >= self._sampled_s:
            self._sampled_s = self.journal.now_s + SAMPLE_S
            self._sample()
        if self.journal.wrong:
            raise Failed(self.journal.wrong[0])
        time.sleep(TURN_S)

    def wait(self, seconds: float) -> Job:
        """A job's way to wait."""
        until_s = self.journal.now_s + seconds
        while self.journal.now_s < until_s:
            yield

    def _keep_running(self) -> Job:
        """The service manager: what ended by itself is started again."""
        while True:
            yield
            for site in self.sites.values():
                status = site.server.ended_by_itself()
                if status is None:
                    continue
                log = tail(site.server.log)
                self.journal.note("ended", who=site.name, status=status, log=log)
                if status == -signal.SIGABRT and _ABORT in log and site.is_proxy:
                    self.journal.reach(ABORTED)
                elif status < 0:
                    self.journal.blame(f"the server of {site.name} died of signal {-status}")
                self.server_died(site.name)
                site.server.wanted = False
                self.add(self._restart(site, RESTART_S))

    def _restart(self, site: Site, after_s: float) -> Job:
        yield from self.wait(after_s)
        if not site.server.wanted:
            site.server.start()
            self.journal.note("start", who=site.name)

    def restart(self, name: str, after_s: float) -> None:
        """Start a server again."""
        self.add(self._restart(self.sites[name], after_s))

    # -- what is known ---------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Read what the clients have noted."""
        for guest in list(self._watched):
            over = guest.poll()
            for at_s, kind, *rest in guest.notes():
                self._noted(guest, at_s, kind, rest)
            if over:
                self._watched.remove(guest)

    def _noted(self, guest: Guest, at_s: float, kind: str, rest: list[Any]) -> None:
        at = at_s - self.journal.began_s
        if kind == "wrong":
            self.journal.blame(f"a client at {guest.site}: {rest[0]}")
        elif kind == "broken":
            self.journal.blame(f"a client at {guest.site} broke: {rest[0]}")
        elif kind == "failed":
            self.journal.note("failed", at=guest.site, s=round(at, 3), request=rest)
            self._judge(guest, at, rest)
        elif kind in ("lost", "connected"):
            self.journal.note(kind, at=guest.site, s=round(at, 3), client=guest.work.client)
        if kind in ("send", "ack", "fail", "orphan", "flush", "flushed"):
            self.ledger.note(at_s, kind, *rest)
        if kind == "ack":
            sent_s = self.ledger.sent[rest[0]].at_s - self.journal.began_s
            self._acknowledged(guest.site, sent_s, at)

    def _acknowledged(self, site: str, sent_s: float, at_s: float) -> None:
        """A write was acknowledged at `site`: is it the only one?"""
        if self.authority is None:
            if site == self.leg[1]:
                self.taken_over(site)
        elif site != self.authority and sent_s > self._since_s:
            self.journal.blame(
                f"{site} acknowledged a write at {at_s:.3f} s that was sent at {sent_s:.3f} s, "
                f"but {self.authority} has the disk since {self._since_s:.3f} s"
            )

    def taken_over(self, site: str) -> None:
        """This site has the disk, as is known for certain."""
        if self.authority != site:
            for other in self.sites:
                if other != site:
                    self.ledger.moved(other)
            self.authority, self._since_s = site, self.journal.now_s
            self.journal.note("authority", at=site)

    def given_back(self, site: str) -> None:
        """The disk is at its source again, for certain."""
        self.authority, self._since_s = site, self.journal.now_s
        self.journal.note("authority", at=site)

    def uncertain(self) -> None:
        """The disk may change hands from now on."""
        if self.authority == self.leg[0]:
            self.authority = None

    def server_died(self, name: str) -> None:
        """A server's process is gone."""
        self.catch_up()
        self.ledger.died(name)

    def _judge(self, guest: Guest, at_s: float, request: list[Any]) -> None:
        """Was there a reason for a request to fail?

        A guest's patience outlasts every fault, so no read fails but of a connection that has to
        be made anew; a write may, where the disk is not.
        """
        promised = self.promised and guest.site == self.leg[1]
        elsewhere = self.authority != guest.site and not (self.authority is None and promised)
        kind, *_, why = request
        excuses = [
            max(site.store_fails_until_s for site in self.sites.values()) + 1.0 > at_s,
            why == "ESHUTDOWN" if kind == "read" else elsewhere or guest.work.client != 0,
        ]
        if not any(excuses):
            self.journal.blame(f"a request failed at {guest.site} without a reason: {request}")

    def _sample(self) -> None:
        """Look at both ends of the leg."""
        for name in self.leg:
            status = self.sites[name].status()
            short = None
            if status is not None:
                short = {key: status.get(key) for key in SHOWN}
                self.states[name] = status
            self.journal.note("status", at=name, is_=short)
        # The destination's, and of now: what it was before it died, or moved back, says nothing.
        if status is not None and status["state"] in SETTLED and self.authority is None:
            self.taken_over(self.leg[1])

    # -- the VM ----------------------------------------------------------------------------------

    def stop_guest(self) -> Job:
        """Let the VM stand still; one whose requests are not answered is killed."""
        guest = self.guest
        if guest is None:
            return
        guest.stop()
        until_s = self.journal.now_s + DRAIN_S
        while not guest.poll() and self.journal.now_s < until_s:
            yield
        guest.kill()
        self.abandon(guest)

    def abandon(self, guest: Guest) -> None:
        """What a client that has ended had under way, nobody knows the fate of."""
        self.catch_up()
        self.ledger.orphan_all(guest.work.client)
        if guest is self.guest:
            self.guest = None

    @property
    def clients_run(self) -> bool:
        """Whether a client has not ended yet."""
        return bool(self._watched)

    def kill_clients(self, sites: str = "ABC") -> bool:
        """kill -9 of all clients at these sites; whether the VM was one of them."""
        ran = self.guest is not None and self.guest.site in sites
        for guest in (self.guest, *self.strangers.values()):
            if guest is not None and guest.site in sites:
                guest.kill()
                self.abandon(guest)
        return ran

    def start_clients(self, guest_too: bool, sites: str = "ABC") -> None:
        """All clients at these sites begin again, with what is known now; the VM if `guest_too`."""
        if guest_too:
            self.start_guest(self.at)
        for number, name in enumerate("AB"):
            if name in self.strangers and name in sites and name != self.closed:
                self.strangers[name].kill()
                self.abandon(self.strangers[name])
                self.strangers[name] = self._client(name, number + 1)


def tail(log: Path) -> str:
    """The last line of a log."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1][-300:] if lines else ""
