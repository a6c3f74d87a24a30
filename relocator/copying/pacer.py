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
from relocator.errors import RelocatorError

HOLD_S = 1.0


class Pacer:
    """Gives out turns until `over` says that nothing more is to be copied.

    `report` is told why the background copy fails, and once a fetch has succeeded since, what it
    `lacks` still; None if that is nothing, or all is over. What fails after that is nobody's
    trouble.
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
        self._complaint: str | None = None
        self._lack: str | None = None

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
        return lambda error: self._released(sent, error)

    def background(self, length: int) -> Released:
        """A background fetch of `length` bytes is being sent; returns as `demand` does."""
        with self._turn:
            now_s = time.monotonic()
            sent = self._window.send(length, now_s)
            self._cap.take(length, now_s)
        return lambda error: self._released(sent, error)

    def _released(self, sent: Sent, error: RelocatorError | None) -> None:
        """A fetch is over; runs on the connection's thread."""
        with self._turn:
            if error is None:
                self._window.received(sent, time.monotonic())
                self._clear_locked()
            else:
                self._window.lost(sent)
                if not sent.demand:
                    if self._complaint is not None:  # one bad place is no reason to wait
                        self._hold_until_s = time.monotonic() + HOLD_S
                    self._complain_locked(str(error))
            self._turn.notify_all()

    def complain(self, message: str) -> None:
        """The background copy fails for a reason of its own; until a fetch succeeds."""
        with self._turn:
            self._complain_locked(message)

    def lacks(self, message: str | None) -> None:
        """What can't be copied for now, whatever else can; None: nothing."""
        with self._turn:
            if message != self._lack:
                self._lack = message
                self._report(self._complaint or message)

    def end_complaints(self) -> None:
        """All is here, for good: what failed on the way did no harm."""
        self.lacks(None)
        with self._turn:
            self._clear_locked()

    def _complain_locked(self, message: str) -> None:
        if not self.over:
            self._complaint = message
            self._report(message)

    def _clear_locked(self) -> None:
        if self._complaint is not None:
            self._complaint = None
            self._report(self._lack)

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
