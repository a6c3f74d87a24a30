"""How a workload is told to end: SIGTERM, after which it finishes the step it is in."""

import signal
import time
from types import FrameType


class Stop:
    """True once SIGTERM has come; `sleep_until` returns early then."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._request)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True

    def sleep_until(self, time_s: float) -> None:
        """Sleeps until the monotonic clock shows `time_s`; wakes every 0.2 s to look."""
        while not self.requested:
            left_s = time_s - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(left_s, 0.2))
