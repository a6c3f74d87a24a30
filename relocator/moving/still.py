"""A guest stands still for a moment, and goes on whatever happens to who has stopped it.

If the connection to its QEMU is lost meanwhile, it is told `cont` by a new one. If this process is
killed, or has to give that up, its guard (guard.py) does it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from relocator.errors import RelocatorError
from relocator.moving.guard import Guard
from relocator.moving.monitor import Monitor
from relocator.signals import uninterrupted

#: how long this process tries to let the guest go on, and then its guard
CONTINUE_S, GUARD_S = 30.0, 600.0
_ANSWER_S = 5.0
_AGAIN_S = 0.5


@contextmanager
def still(guest: Monitor, guard: Guard) -> Iterator[bool]:
    """The guest stands still within the block; yields whether that is our doing.

    Raises:
        RelocatorError: it can't be stopped, or, what weighs more, not be let go on.
    """
    if not guest.call("query-status")["running"]:
        yield False
        return
    try:
        guard.watch()
        guest.call("stop")
        yield True
    finally:
        with uninterrupted():
            go_on(guest, CONTINUE_S)
            guard.at_rest()


def go_on(guest: Monitor, patience_s: float) -> None:
    """Let a guest that was stopped go on; one that isn't any more is left alone.

    Raises:
        RelocatorError: its QEMU can't be told; says that the guest stands still, and what to do.
    """
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            if guest.call("query-status", _ANSWER_S)["status"] == "paused":
                guest.call("cont", _ANSWER_S)
        except RelocatorError as error:
            if time.monotonic() > give_up_s:
                raise RelocatorError(
                    f"THE GUEST STANDS STILL: it was stopped for the last blocks, and {error}. "
                    "Say `cont` to its QMP socket, or `virsh resume` where libvirt has it"
                ) from error
            time.sleep(_AGAIN_S)
        else:
            return
