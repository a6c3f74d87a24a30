"""The background copy: walks the order and fetches what is absent, as much as pacing allows.

One thread. It sleeps on `_turn` until it may send: not paused, window open, source not refusing.
Holes of the source are asked for ahead of the copy and become present without being transferred.
When the last block has arrived, by whatever way, this thread completes the relocation.

`_turn` guards the pacing state and the flags; it is never held across I/O.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from relocator.copying.holes import Holes
from relocator.copying.hydration import Claim, Hydration
from relocator.copying.pacing import Sent, TokenBucket, Window
from relocator.errors import StoreError
from relocator.source.upstream import Upstream
from relocator.store.store import Store

Range = tuple[int, int]
PREFETCH_BLOCKS = 32
HOLD_S = 1.0
IDLE_S = 0.02


class Copier:
    """Copies in the background while `enabled`, and calls `finish` when all is present."""

    def __init__(
        self,
        store: Store,
        *,
        upstream: Upstream,
        hydration: Hydration,
        window: Window,
        bucket: TokenBucket,
        plan: Callable[[], Iterator[Range]],
        finish: Callable[[], bool],
    ) -> None:
        self._store = store
        self._plan = plan
        self._restart = False
        self._pulled: deque[Range] = deque()
        self._hydration = hydration
        self._window = window
        self._bucket = bucket
        self._finish = finish
        self._holes = Holes(store, upstream, hydration)
        self._turn = threading.Condition()
        self._enabled = False
        self._paused = False
        self._stopping = False
        self._stopped = threading.Event()
        self._all_present = False
        self._hold_until_s = 0.0
        self.last_error: str | None = None
        self._thread = threading.Thread(target=self._run, name="copier", daemon=True)

    def start(self, *, enabled: bool) -> None:
        """Start the thread; with `enabled`, copying begins at once."""
        self._enabled = enabled
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more. The thread ends once what it waits for has come or failed."""
        self._stopped.set()
        with self._turn:
            self._stopping = True
            self._turn.notify_all()

    def join(self) -> None:
        """Wait for the thread's end; after `stop` and the upstream's `close`."""
        if self._thread.is_alive():
            self._thread.join()

    def set_enabled(self, enabled: bool) -> None:
        """Switch the background copy on or off."""
        with self._turn:
            self._enabled = enabled
            self._turn.notify_all()

    def set_paused(self, paused: bool) -> None:
        """Pause, or go on."""
        with self._turn:
            self._paused = paused
            self._turn.notify_all()

    def set_rate(self, rate_bits_per_s: float | None) -> None:
        """Cap the rate; None is no cap."""
        with self._turn:
            self._bucket.rate_bits_per_s = rate_bits_per_s
            self._turn.notify_all()

    def set_window(self, window_bytes: int | None) -> None:
        """Fix the window, or let it follow the link (None)."""
        with self._turn:
            self._window.fixed_bytes = window_bytes
            self._turn.notify_all()

    def restart(self) -> None:
        """The plan has changed: the pass under way ends and one by the new plan begins."""
        with self._turn:
            self._restart = True
            self._turn.notify_all()

    def pull(self, first: int, end: int) -> None:
        """Copy these blocks next: the guest is at work there."""
        if self.running and (first, end) not in self._pulled:
            self._pulled.append((first, end))

    def prefetch(self, first: int, end: int) -> None:
        """Fetch what is absent of these blocks now, beside the copy; never waits."""
        while (claim := self._hydration.claim_background(first, end, PREFETCH_BLOCKS)) is not None:
            self._fetch(claim)

    def demand(self, claim: Claim) -> Callable[[Claim], None]:
        """A guest waits for this fetch: the copy leaves it room on the link.

        What is returned is to be called at the fetch's end; both from any thread.
        """
        length = self._store.geometry.extent(claim.first, claim.end).length
        with self._turn:
            sent = self._window.send(length, time.monotonic(), demand=True)
        return lambda claim: self._released(claim, sent)

    def all_present(self) -> None:
        """Tell the copier that the last block has arrived; safe from any thread."""
        with self._turn:
            self._all_present = True
            self._turn.notify_all()

    @property
    def running(self) -> bool:
        """Whether it is switched on and not paused."""
        return self._enabled and not self._paused

    @property
    def paused(self) -> bool:
        """Whether it was told to pause."""
        return self._paused

    @property
    def window(self) -> Window:
        """The pacing window, for the status."""
        return self._window

    @property
    def rate_cap_bits_per_s(self) -> float | None:
        """The operator's cap."""
        return self._bucket.rate_bits_per_s

    # Below this line everything runs on the copier's thread, except `_released`.

    def _run(self) -> None:
        while not self._over():
            try:
                sent = self._pass()
            except StoreError as error:  # a hole could not be filled: the store may get room again
                self.last_error = str(error)
                self._sleep(HOLD_S)
                continue
            if not sent:  # all is present or in flight, or the source refused: look again later
                self._sleep(IDLE_S)
        while self._all_present and not self._stopping and not self._finish():
            self._stopped.wait(HOLD_S)

    def _over(self) -> bool:
        return self._stopping or self._all_present

    def _pass(self) -> int:
        """Visit the whole disk once; returns how many requests it sent.

        What fails, or is given up by a write, is met again by the next pass.
        """
        sent = 0
        self._restart = False
        for first, end in self._ranges():
            self._wait_turn()
            self._holes.fill(first, end)
            at = first
            while (claim := self._claim(at, end)) is not None:
                self._fetch(claim)
                sent += 1
                at = claim.end
            if self._over() or self._restart:
                break
        return sent

    def _ranges(self) -> Iterator[Range]:
        """The plan, and before each of its ranges what the guest's accesses have pulled forward."""
        done: set[Range] = set()
        for planned in self._plan():
            while self._pulled:
                pulled = self._pulled.popleft()
                if pulled not in done:
                    done.add(pulled)
                    yield pulled
            yield planned

    def _claim(self, first: int, end: int) -> Claim | None:
        """Wait until a request may be sent; then claim the next run of `first..end` for it."""
        if self._store.present.all(first, end):
            return None
        length = self._wait_turn()
        if length == 0:
            return None
        most = max(1, length // self._store.geometry.block_bytes)
        return self._hydration.claim_background(first, end, most)

    def _fetch(self, claim: Claim) -> None:
        length = self._store.geometry.extent(claim.first, claim.end).length
        with self._turn:
            now_s = time.monotonic()
            sent = self._window.send(length, now_s)
            self._bucket.take(length, now_s)
        self._hydration.send(claim, lambda claim: self._released(claim, sent))

    def _released(self, claim: Claim, sent: Sent) -> None:
        """A fetch is over; runs on the connection's thread."""
        with self._turn:
            if claim.error is None:
                self._window.received(sent, time.monotonic())
                self.last_error = None
            else:
                self._window.lost(sent)
                if not sent.demand:
                    self.last_error = str(claim.error)
                    self._hold_until_s = time.monotonic() + HOLD_S
            self._turn.notify_all()

    def _wait_turn(self) -> int:
        """Wait until a request may be sent; returns its size in bytes, or 0 to stop."""
        with self._turn:
            while not self._over():
                now_s = time.monotonic()
                if not self.running or not self._window.open:
                    self._turn.wait()
                    continue
                wait_s = max(self._hold_until_s - now_s, self._bucket.delay_s(now_s))
                if wait_s <= 0:
                    return self._window.request_bytes
                self._turn.wait(wait_s)
        return 0

    def _sleep(self, delay_s: float) -> None:
        with self._turn:
            if not self._over():
                self._turn.wait(delay_s)
