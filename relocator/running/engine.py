"""A running disk: its parts put together, its threads started and stopped.

Opening (`open_engine`) checks everything and takes the store's lock, so that errors are shown while
nbdkit still has a terminal; `start` begins to connect and to copy, after nbdkit has forked.
"""

import sys
import threading
import time
from collections.abc import Sequence
from functools import partial

from relocator import words
from relocator.config import Config
from relocator.copying import ordering
from relocator.copying.cap import Cap
from relocator.copying.copier import Copier
from relocator.copying.heat import Heat
from relocator.copying.holes import Holes
from relocator.copying.hydration import Hydration
from relocator.copying.pacer import Pacer
from relocator.copying.pacing import Window
from relocator.copying.plan import Plan
from relocator.copying.readahead import Readahead
from relocator.copying.recent import Recent
from relocator.copying.seeding import Seeding
from relocator.copying.seeds import Seed
from relocator.copying.sharing import Share
from relocator.errors import ConfigError, RelocatorError, StateError
from relocator.running.disk import Disk
from relocator.running.doors import Doors
from relocator.running.handover import Handover
from relocator.running.latency import Requests
from relocator.running.lifecycle import Lifecycle
from relocator.running.opening import open_disk
from relocator.running.parts import COMMIT, COMPLETION, COPY, Faults, Parts, Transfer
from relocator.running.sessions import Session
from relocator.running.status import Status
from relocator.running.verbs import Verbs
from relocator.source.identity import Guard
from relocator.source.upstream import Upstream
from relocator.store.geometry import Extent
from relocator.store.store import Store

COMMIT_EVERY_S = 5


class Engine:
    """Serves one disk and, while it has an upstream, brings the rest of it here."""

    def __init__(
        self,
        settings: Config,
        store: Store,
        seeds: Sequence[Seed],
        share: Share | None = None,
        trace: Sequence[Extent] = (),
    ) -> None:
        self._store = store
        self._seeds = seeds
        self._share = share
        self._lifecycle = Lifecycle(store)
        self._faults = Faults()
        self._heat = Heat(store.geometry.size_bytes, time.monotonic)
        kept = None if store.directory is None else store.directory / "recent"
        self._recent = Recent(time.monotonic, settings.recent_places, kept)
        self._plan = Plan(
            store.geometry,
            settings.order,
            heat_shift=self._heat.shift,
            trace=ordering.blocks(trace, store.geometry.block_bytes),
        )
        self._transfer = self._make_transfer(settings) if self._lifecycle.unfinished else None
        self._parts = Parts(
            settings,
            store,
            self._lifecycle,
            self._heat,
            self._recent,
            self._plan,
            self._faults,
            Requests(),
            self._transfer,
        )
        self._handover = Handover(self._parts)
        disk = self._make_disk(settings)
        status = Status(self._parts, disk, self._handover.activation.status)
        self.verbs = Verbs(self._parts, disk, self._handover, status)
        self.doors = Doors(settings.key)
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def _make_transfer(self, settings: Config) -> Transfer:
        store, lifecycle, faults = self._store, self._lifecycle, self._faults
        if (endpoint := settings.endpoint) is None:
            raise ConfigError(
                f"source is missing: the store {settings.store} is not complete; "
                f"it was made from {store.meta.source}"
            )
        upstream = Upstream(
            endpoint,
            settings.retry_timeout_s,
            settings.connections,
            Guard(store, endpoint, self._be_outdated),
            shared=settings.shared,
        )
        pacer = Pacer(
            Window(settings.window_bytes, lambda: upstream.lanes),
            Cap(
                settings.rate,
                settings.finish_by_s,
                self._left_bytes,
                share=self._share,
            ),
            over=lambda: store.all_present and not lifecycle.pass_through,
            report=partial(faults.report, COPY),
        )
        upstream.on_silence = pacer.silence
        hydration = Hydration(store, upstream, on_demand=pacer.demand, on_complete=pacer.wake)
        holes = Holes(
            store,
            upstream,
            hydration,
            over=lambda: pacer.over,
            at_once=lambda: pacer.has_deadline,
        )
        seeding = None
        if self._seeds:
            seeding = Seeding(
                store,
                endpoint,
                upstream=upstream,
                hydration=hydration,
                pacer=pacer,
                plan=self._plan,
                holes=holes,
                seeds=self._seeds,
                rate_bits_per_s=settings.seed_rate_bits_per_s,
            )
        total, block_bytes = store.geometry.total_blocks, store.geometry.block_bytes
        copier = Copier(
            store,
            hydration=hydration,
            pacer=pacer,
            plan=self._plan,
            holes=holes,
            seeding=seeding,
            readahead=Readahead(total, block_bytes, settings.readahead_bytes),
            pull_forward=settings.pull_forward,
            finish=self._finish,
        )
        return Transfer(upstream, hydration, pacer, copier, seeding)

    def _make_disk(self, settings: Config) -> Disk:
        activation = self._handover.activation
        if (transfer := self._transfer) is None:
            heat, recent = self._heat, self._recent
            return Disk(self._store, self._lifecycle, heat, recent, requests=self._parts.requests)
        return Disk(
            self._store,
            self._lifecycle,
            self._heat,
            self._recent,
            hydration=transfer.hydration,
            on_miss=transfer.copier.missed,
            on_refusal=activation.by_write if settings.activate_on_write else None,
            requests=self._parts.requests,
        )

    def _left_bytes(self) -> int:
        """What the background copy has yet to bring, as far as that is known."""
        rounds = self._handover.activation.rounds if self._lifecycle.pass_through else None
        return self._store.absent_bytes if rounds is None else rounds.left_bytes

    def _be_outdated(self, seal: str) -> None:
        self._handover.activation.afterwards.be_outdated(seal)

    def open_session(self, name: str) -> Session:
        """A client's connection to what it calls `name`; errors as `Verbs.open_export`."""
        return Session(self.verbs.open_export(*self.doors.admit(name)), self._lifecycle)

    def start(self) -> None:
        """Connect to the source and begin to copy."""
        self.doors.look()
        self._keeper.start()
        if self._transfer is None:
            self._handover.activation.begin()
            return
        self._transfer.upstream.start()
        preseeds = not self._lifecycle.pass_through or self._handover.copies_ahead
        self._transfer.pacer.set_enabled(self._parts.settings.background and preseeds)
        if self._transfer.seeding is not None:
            self._transfer.seeding.start()
        self._transfer.copier.start()
        self._handover.activation.begin()

    def stop(self) -> None:
        """Stop copying, disconnect, commit, and let go of the store."""
        self._lifecycle.stopping.set()
        if self._transfer is not None:
            self._transfer.copier.stop()
            self._transfer.upstream.close()
            self._transfer.copier.join()
            if self._transfer.seeding is not None:
                self._transfer.seeding.join()
            self._handover.activation.join()
            self._transfer.hydration.disown_fetches()  # no free block is filled from here on
            self._handover.activation.afterwards.join()
        if self._keeper.is_alive():
            self._keeper.join()
            self._recent.turn()
        self._store.close()

    def _finish(self) -> bool:
        """Make it durable that every block is here, then drop the upstream (copier's thread).

        Returns False if that failed for now, or is not so any more: the source is kept, and it is
        tried again.
        """
        try:
            self._lifecycle.complete()
        except StateError:  # given back to its source meanwhile
            return False
        except (OSError, RelocatorError) as error:
            self._faults.report(COMPLETION, f"the last commit failed: {error}")
            return False
        self._faults.report(COMPLETION, None)
        if self._transfer is not None:
            self._transfer.pacer.end_complaints()
            self._transfer.upstream.close()
        self._lifecycle.finished.set()
        return True

    def _keep(self) -> None:
        """Once a second: note that time passes for what is counted; every few seconds: commit.

        If the maps have lost something, what that raises ends the process.
        """
        seconds = 0
        while not self._lifecycle.stopping.wait(1.0):
            self._heat.tick()
            self._recent.tick()
            self._store.check()
            seconds += 1
            due = self._store.owes_commit or self._store.failure
            if seconds % COMMIT_EVERY_S == 0 and due:
                try:
                    self._store.commit()
                    self._faults.report(COMMIT, None)
                except RelocatorError as error:
                    self._faults.report(COMMIT, str(error))


def open_engine(settings: Config) -> Engine:
    """Open the disk and everything it needs, without starting anything.

    Raises:
        ConfigError: the disk, store, source, a seed, the group's file or a trace doesn't fit.
    """
    seeds = [Seed(path) for path in settings.seeds]
    share = Share(settings.rate_group) if settings.rate_group else None
    trace = ordering.accesses(settings.order)
    store = open_disk(settings)  # the seal comes last
    for note in store.notes:
        print(f"relocator: {words.printable(note)}", file=sys.stderr, flush=True)
    return Engine(settings, store, seeds, share, trace)
