"""The background copy: one thread that walks the plan and fetches what is absent, turn by turn.

Holes of the source are asked for ahead of the copy and become present without being transferred.
Where there are seeds, it fetches what they have been found not to hold (see seeding.py).
What the source fails to read comes last (see refused.py).
What guests miss sets off more: its surroundings come next, and of a stream what follows is fetched
at once. When the last block has arrived, by whatever way, this thread completes the relocation.

`_pulled_lock` guards what is pulled forward, which guests' threads add to.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from relocator.copying.claims import Claim
from relocator.copying.holes import Holes
from relocator.copying.hydration import Hydration
from relocator.copying.pacer import HOLD_S, Pacer
from relocator.copying.plan import Plan
from relocator.copying.readahead import Readahead
from relocator.copying.seeding import Seeding
from relocator.errors import StoreError
from relocator.store.store import Store

Range = tuple[int, int]
PREFETCH_BYTES = 128 << 10
#: so often it is asked again for what failed, until it is looked whether there is something better
AGAIN_TIMES = 16
IDLE_S = 0.02
IDLE_TIMES = 10  # so much longer than a pass in vain took


class Copier:
    """Copies in the background whenever `pacer` gives it a turn.

    `pull_forward` says whether what lies around a miss comes next. `finish` is called once all is
    present, again and again until it returns True.
    """

    def __init__(
        self,
        store: Store,
        *,
        hydration: Hydration,
        pacer: Pacer,
        plan: Plan,
        holes: Holes,
        seeding: Seeding | None,
        readahead: Readahead,
        pull_forward: bool,
        finish: Callable[[], bool],
    ) -> None:
        self._store = store
        self._plan = plan
        self._readahead = readahead
        self._pull_forward = pull_forward
        self._hydration = hydration
        self._background = hydration.background
        self._pacer = pacer
        self._finish = finish
        self._holes = holes
        self._seeding = seeding
        self._pulled: deque[Range] = deque()
        self._pulled_lock = threading.Lock()
        self._generation = 0
        self._told = 0  # of what the source fails to read
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copier", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more. The thread ends once what it waits for has come or failed."""
        self._stopped.set()
        self._pacer.stop()

    def join(self) -> None:
        """Wait for the thread's end; after `stop` and the upstream's `close`."""
        if self._thread.is_alive():
            self._thread.join()

    def missed(self, first: int, end: int) -> None:
        """A guest's read of the blocks `first..end` waits for the source; this never waits."""
        unit = self._plan.unit_around(first)
        if self._pull_forward and self._pacer.running:
            self._pull(unit)
        ahead = self._readahead.missed(first, end, link_idle=self._pacer.in_flight_bytes == 0)
        most_bytes = min(PREFETCH_BYTES, self._pacer.piece_bytes)
        most = max(1, most_bytes // self._store.geometry.block_bytes)
        while ahead and (claim := self._background.claim(*ahead, most)):
            self._fetch(claim)

    def _pull(self, unit: Range) -> None:
        if self._seeding is not None and self._seeding.want(*unit):
            return
        with self._pulled_lock:
            if unit not in self._pulled:
                self._pulled.append(unit)

    def _fetch(self, claim: Claim) -> None:
        length = self._store.geometry.extent(claim.first, claim.end).length
        self._hydration.send(claim, self._pacer.background(length))

    # Below this line everything runs on the copier's thread.

    def _run(self) -> None:
        while not self._pacer.stopping:
            if not self._pacer.over:
                self._copy()
            elif self._finish():
                return
            else:
                self._stopped.wait(HOLD_S)

    def _copy(self) -> None:
        """Visit the whole disk once; wait a little if that was in vain."""
        self._tell()
        if not self._compares and self._background.left_to_refused:
            self._pacer.lacks(self._background.refusal)  # a guest may have written some of it
            if not self._ask_again():
                self._pacer.sleep(HOLD_S)
            return
        began_s = time.monotonic()
        try:
            sent = self._pass()
        except StoreError as error:  # a hole could not be filled: the store may get room again
            self._pacer.complain(str(error))
            self._pacer.sleep(HOLD_S)
            return
        if not sent and not self._outdated:
            # All is present, or in flight, or set aside, or the source refused.
            idle_s = IDLE_TIMES * (time.monotonic() - began_s)
            self._pacer.sleep(min(max(IDLE_S, idle_s), HOLD_S))

    @property
    def _compares(self) -> bool:
        """Whether what is absent is still looked for in the seeds."""
        return self._seeding is not None and not self._seeding.ended

    def _tell(self) -> None:
        """Tell what the source fails to read, if that has changed."""
        if self._told != self._background.refusals:
            self._told = self._background.refusals
            self._pacer.lacks(self._background.refusal)

    def _ask_again(self) -> bool:
        """Fetch what the source has failed to read, where it is time; whether something was."""
        for sent in range(AGAIN_TIMES):
            if not self._background.again_due or not self._pacer.wait_turn():
                return sent > 0
            if (claim := self._background.claim_again()) is None:
                return sent > 0
            self._fetch(claim)
        return True

    def _pass(self) -> int:
        """Visit the whole disk once; returns how many requests it sent.

        What fails, or is given up by a write, is met again by the next pass.
        """
        sent = 0
        self._generation = self._plan.generation
        if self._store.all_present:
            return 0
        seeded = self._compares
        for first, end in self._seeding.settled() if self._seeding and seeded else self._ranges():
            self._tell()
            self._pacer.wait_turn()
            if self._outdated:
                break
            if not seeded and not self._background.sets_aside(first, end):
                self._holes.fill(first, end)
            at = first
            while (claim := self._claim(at, end)) is not None:
                self._fetch(claim)
                sent += 1
                at = claim.end
            if self._pacer.over:
                break
        return sent

    @property
    def _outdated(self) -> bool:
        """Whether the plan has changed since this pass began."""
        return self._plan.generation != self._generation

    def _ranges(self) -> Iterator[Range]:
        """The plan: first what is known block by block, then, before each range, what was pulled.

        What the guest has read of late says more than what lies around one miss.
        """
        yield from self._plan.named()
        done: set[Range] = set()
        for planned in self._plan.ranges():
            while (pulled := self._next_pulled()) is not None:
                if pulled not in done:
                    done.add(pulled)
                    yield pulled
            yield planned

    def _next_pulled(self) -> Range | None:
        if not self._pulled:
            return None
        with self._pulled_lock:
            return self._pulled.popleft()

    def _claim(self, first: int, end: int) -> Claim | None:
        """Wait until a request may be sent; then claim the next run of `first..end` for it."""
        if self._store.present.all(first, end):
            return None
        length = self._pacer.wait_turn()
        if length == 0 or self._outdated:
            return None
        most = max(1, length // self._store.geometry.block_bytes)
        return self._background.claim(first, end, most)
