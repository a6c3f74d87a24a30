"""The signals that ask a process to end: which of them are meant, and when they have to wait.

Who runs a command with nohup has said that a terminal which goes does not end it: a SIGHUP that is
ignored from the beginning stays so.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_AGAIN_S = 0.1
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _in_main_thread() -> bool:
    threading = sys.modules.get("threading")  # a process that has never needed it has one thread
    return threading is None or threading.current_thread() is threading.main_thread()


def ending() -> frozenset[signal.Signals]:
    """The signals that ask this process to end."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return frozenset(_ENDING) - ({signal.SIGHUP} if ignored else set())


def interrupt() -> None:
    """From now on each of them is a KeyboardInterrupt in the main thread, and none gets lost.

    One that comes while Python tidies up (a weak reference's callback, as imports have) is dropped
    there; then it comes again.
    """
    for number in ending() - {signal.SIGINT}:  # that is one, unless it is ignored
        signal.signal(number, signal.default_int_handler)
    sys.unraisablehook = _dropped


@contextmanager
def interrupting() -> Iterator[None]:
    """The same within the block."""
    if not _in_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ending()}
    hook = sys.unraisablehook
    interrupt()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        _restore(before)


def _dropped(what: "sys.UnraisableHookArgs") -> None:
    if what.exc_type is KeyboardInterrupt:
        import threading

        threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(what)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """None of them does anything within the block; what is started there hears them as ever."""
    if not _in_main_thread():
        yield
        return
    before = {number: signal.signal(number, _pass) for number in ending()}
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _pass(_number: int, _frame: Any) -> None:
    """Rather than SIG_IGN, which what is started would inherit."""
