"""A copy that goes on while the run does, and ends when it is complete."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Completion:
    """Runs a copy in a thread, and notes when it was complete."""

    def __init__(self, copy: Callable[[], None]) -> None:
        self.at_s: float | None = None
        self.failure: BaseException | None = None
        self._copy = copy
        self._thread = threading.Thread(target=self._run, name="copy", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._copy()
            self.at_s = time.monotonic()
        except BaseException as error:
            self.failure = error
