"""When the background copy may send: switched on, not paused, window open, within the rate cap.

The copier's thread waits here for its turn; guests' threads report what they have asked for, and
connections' threads what has come. What decides is pure and in pacing.py.

`_turn` guards window, cap and what failed; it is never held across I/O. A switch is a single
value, set before whoever waits is woken to look at it.
"""

import threading
import time
from collections.abc import Callable

from relocator.copying.cap import Cap
from relocator.copying.hydration import Released
from relocator.copying.pacing import Sent, Window
from relocator.copying.timetable import Change, Timetable
from relocator.errors import RefusedError, RelocatorError

HOLD_S = 1.0
#: so much that the source leaves unanswered is taken off the window, so that the rest is copied
MOST_STUCK_BYTES = 8 << 20


class Fetch:
    """A fetch under way, as `Released` has it."""

    __slots__ = ("_pacer", "is_stuck", "sent")

    def __init__(self, pacer: "Pacer", sent: Sent) -> None:
        self._pacer = pacer
        self.sent = sent
        self.is_stuck = False

    def __call__(self, error: RelocatorError | None) -> None:
        """It is over."""
        self._pacer.released(self, error)

    def stuck(self) -> None:
        """It stays out."""
        self._pacer.let_out(self)


class Pacer:
    """Gives out turns until `over` says that nothing more is to be copied.

    `report` is told why the background copy fails, until a fetch has succeeded since; else what
    the source leaves unanswered, or what the copy `lacks`; None if that is nothing, or all is over.
    What fails after that is nobody's trouble.
    """

    def __init__(
        self,
        window: Window,
        cap: Cap,
        *,
        over: Callable[[], bool],
        report: Callable[[str | None], None],
    ) -> None:
        self._window = window
        self._cap = cap
        self._all_here = over
        self._report = report
        self._turn = threading.Condition()
        self._enabled = False
        self.paused = False
        self.stopping = False
        self._hold_until_s = 0.0
        self._refusing = False  # the source refused what was fetched last
        self._stuck_bytes = 0
        self._complaint: str | None = None
        self._silence: str | None = None
        self._lack: str | None = None
        self._told: str | None = None

    def stop(self) -> None:
        """Give out no more turns."""
        self.stopping = True
        self.wake()

    def set_enabled(self, enabled: bool) -> None:
        """Switch the background copy on or off."""
        self._enabled = enabled
        self.wake()

    def set_paused(self, paused: bool) -> None:
        """Pause, or go on."""
        self.paused = paused
        self.wake()

    def set_rate(self, rate: Timetable) -> None:
        """Cap the rate."""
        with self._turn:
            self._cap.set_rate(rate)
            self._turn.notify_all()

    def set_finish_by(self, at_s: float | None) -> None:
        """When all is to be here, in seconds since 1970; None is whenever it may be."""
        with self._turn:
            self._cap.set_finish_by(at_s)
            self._turn.notify_all()

    def set_window(self, window_bytes: int | None) -> None:
        """Fix the window, or let it follow the link (None)."""
        with self._turn:
            self._window.fixed_bytes = window_bytes
            self._turn.notify_all()

    def wake(self) -> None:
        """Let whoever waits look again at what has changed; safe from any thread."""
        with self._turn:
            self._turn.notify_all()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be sent."""
        return self.stopping or self._all_here()

    @property
    def running(self) -> bool:
        """Whether the background copy is switched on and not paused."""
        return self._enabled and not self.paused

    @property
    def window_bytes(self) -> int:
        """How many background bytes may be on their way."""
        return self._window.limit_bytes

    @property
    def round_trip_bytes(self) -> int | None:
        """What the link brings in a round trip, as it was measured last; None before."""
        return self._window.round_trip_bytes

    @property
    def bytes_per_s(self) -> float:
        """What the link brings of the background copy, as it was measured last; 0 before."""
        return self._window.bytes_per_s

    @property
    def piece_bytes(self) -> int:
        """The most that may be asked for at once: little while the link isn't known yet."""
        return self._window.piece_bytes

    @property
    def in_flight_bytes(self) -> int:
        """How many background bytes are on their way."""
        return self._window.in_flight_bytes

    @property
    def rate_cap_bits_per_s(self) -> float | None:
        """What the operator allows now."""
        with self._turn:
            return self._cap.rate_bits_per_s(time.monotonic())

    @property
    def group(self) -> tuple[str, int] | None:
        """The group's file and how many share its cap at the moment; None without a group."""
        share = self._cap.share
        return None if share is None else (str(share.path), share.members(time.monotonic()))

    @property
    def next_cap(self) -> Change | None:
        """When the cap changes, and to what."""
        return self._cap.next_change()

    @property
    def has_deadline(self) -> bool:
        """Whether all is to be here in time; then it is worth it to know how much is to come."""
        return self._cap.has_deadline

    @property
    def finish_by(self) -> tuple[float, float | None] | None:
        """The deadline, and by how many seconds it will be missed; see `Cap.finish_by`."""
        with self._turn:
            return self._cap.finish_by(time.monotonic())

    def demand(self, length: int) -> Released:
        """A guest waits for a fetch of `length` bytes: the copy leaves it room on the link.

        What is returned is to be called at the fetch's end; both from any thread.
        """
        with self._turn:
            sent = self._window.send(length, time.monotonic(), demand=True)
        return Fetch(self, sent)

    def background(self, length: int) -> Released:
        """A background fetch of `length` bytes is being sent; returns as `demand` does."""
        with self._turn:
            now_s = time.monotonic()
            sent = self._window.send(length, now_s)
            self._cap.take(length, now_s)
        return Fetch(self, sent)

    def released(self, fetch: Fetch, error: RelocatorError | None) -> None:
        """A fetch is over; runs on the connection's thread."""
        sent = fetch.sent
        with self._turn:
            if fetch.is_stuck:
                self._stuck_bytes -= sent.length
            elif error is None:
                self._window.received(sent, time.monotonic())
            else:
                self._window.lost(sent)
            if error is None:
                self._complaint, self._refusing = None, False
            elif not sent.demand:
                is_refused = isinstance(error, RefusedError)
                if not is_refused:
                    self._complaint = str(error)
                if self._refusing or not is_refused:  # one bad place is no reason to wait
                    self._hold_until_s = time.monotonic() + HOLD_S
                self._refusing = is_refused
            if error is not None or self._told is not None:
                self._tell_locked()
            self._turn.notify_all()

    def let_out(self, fetch: Fetch) -> None:
        """A fetch that stays out no longer counts against the window."""
        with self._turn:
            stuck_bytes = self._stuck_bytes + fetch.sent.length
            if not fetch.is_stuck and stuck_bytes <= MOST_STUCK_BYTES:
                fetch.is_stuck = True
                self._stuck_bytes = stuck_bytes
                self._window.lost(fetch.sent)
                self._turn.notify_all()

    def silence(self, message: str | None) -> None:
        """What the source leaves unanswered; None: it has answered."""
        with self._turn:
            self._silence = message
            self._tell_locked()

    def complain(self, message: str) -> None:
        """The background copy fails for a reason of its own; until a fetch succeeds."""
        with self._turn:
            self._complaint = message
            self._tell_locked()

    def lacks(self, message: str | None) -> None:
        """What can't be copied for now, whatever else can; None: nothing."""
        with self._turn:
            self._lack = message
            self._tell_locked()

    def end_complaints(self) -> None:
        """All is here, for good: what failed on the way did no harm."""
        with self._turn:
            self._complaint = self._silence = self._lack = None
            self._tell_locked()

    def _tell_locked(self) -> None:
        message = self._complaint or self._silence or self._lack
        if message != self._told and not (message and self.over):
            self._told = message
            self._report(message)

    def wait_turn(self) -> int:
        """Wait until a request may be sent; returns its size in bytes, or 0 once all is over."""
        with self._turn:
            while not self.over:
                now_s = time.monotonic()
                if not self.running or not self._window.open:
                    self._turn.wait()
                    continue
                wait_s = max(self._hold_until_s - now_s, self._cap.delay_s(now_s))
                if wait_s <= 0:
                    return self._window.request_bytes
                self._turn.wait(wait_s)
        return 0

    def allow(self, length: int) -> bool:
        """Wait until the copy may send `length` bytes beside the window; False once all is over."""
        with self._turn:
            while not self.over:
                now_s = time.monotonic()
                wait_s = max(self._hold_until_s - now_s, self._cap.delay_s(now_s))
                if self.running and wait_s <= 0:
                    self._cap.take(length, now_s)
                    return True
                self._turn.wait(wait_s if self.running else None)
        return False

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for what someone changes who then calls `wake`; False once all is over."""
        with self._turn:
            self._turn.wait_for(lambda: self.over or condition())
        return not self.over

    def sleep(self, delay_s: float) -> None:
        """Wait, but not past the end."""
        with self._turn:
            if not self.over:
                self._turn.wait(delay_s)
