"""How what the test bed runs comes to an orderly end, whatever ends it.

A *program* ends by an exception where it stands, so that every `with` takes down what it has built:
`on_signals` turns signals into one. A *helper thread* works beside the program until its `with` is
left; what went wrong in it is raised by `check`, and at the end.
"""

import signal
import threading
from typing import NoReturn, Self


def on_signals() -> None:
    """SIGINT raises KeyboardInterrupt; SIGTERM and SIGHUP raise SystemExit with 128 + the number.

    Set, not inherited: a shell starts background jobs with SIGINT ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


class Helper:
    """A thread beside the program; a subclass's `work` is what it does, until `ending` is set."""

    doing = "a helper thread"  # what it does, for the message

    def __init__(self) -> None:
        self.ending = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=self.doing, daemon=True)

    def work(self) -> None:
        raise NotImplementedError

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def check(self) -> None:
        """Raises what went wrong, if something did."""
        if self._failure is not None:
            raise RuntimeError(f"{self.doing} failed: {self._failure}") from self._failure

    def end(self) -> None:
        """End the thread and wait for it."""
        self.ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # raised again by check, on the program's thread
            self._failure = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end()
        if kind is None:
            self.check()
