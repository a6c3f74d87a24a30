"""A copy that goes on while the run does, and ends when it is complete."""

import time
from collections.abc import Callable

from testbed.ending import Helper


class Completion(Helper):
    """Runs a copy in a thread, and notes when it was complete."""

    doing = "the copy"

    def __init__(self, copy: Callable[[], None]) -> None:
        super().__init__()
        self.at_s: float | None = None
        self._copy = copy
        self.begin()

    def work(self) -> None:
        self._copy()
        self.at_s = time.monotonic()
