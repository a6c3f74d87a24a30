"""To ask the source again and again, as the switch does: for so long as reads wait for it, too."""

import time
from collections.abc import Callable
from typing import TypeVar

from relocator.errors import UpstreamError
from relocator.running.parts import HANDOVER, Parts
from relocator.source.connection import backoff

T = TypeVar("T")


def insist(parts: Parts, ask: Callable[[], T], pause: Callable[[float], None], why: str) -> T:
    """The source's answer. `pause` waits for so many seconds, or raises; `why` tells of a failure.

    Raises:
        UpstreamError: it did not answer within the retry timeout.
        StateError: it refused.
    """
    give_up_s = time.monotonic() + parts.settings.retry_timeout_s
    for delay_s in backoff():
        pause(0.0)
        try:
            return ask()
        except UpstreamError as error:
            if time.monotonic() + delay_s > give_up_s:
                raise
            parts.faults.report(HANDOVER, f"{why}: {error}")
        pause(delay_s)
    raise AssertionError("backoff goes on for ever")
