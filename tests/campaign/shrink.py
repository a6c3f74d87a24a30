"""Makes a failing run smaller: first the worlds before it go, then event after event.

What remains is a run from which nothing can be taken: without any one of its events it passes.
"""

from collections.abc import Callable

from tests.campaign.world import World

Worlds = tuple[World, ...]


def smaller(worlds: Worlds, fails: Callable[[Worlds], bool], tell: Callable[[str], None]) -> Worlds:
    """The least of these worlds that `fails`, which the given ones do; `tell` hears of progress."""
    if len(worlds) > 1 and fails(worlds[-1:]):
        worlds = worlds[-1:]
        tell("it fails in a boot of its own")
    before, last = worlds[:-1], worlds[-1]
    step = max(1, len(last.events) // 2)
    while last.events:
        at, shrunk = 0, False
        while at < len(last.events):
            less = last.with_events(last.events[:at] + last.events[at + step :])
            if fails((*before, less)):
                last, shrunk = less, True
                tell(f"{len(last.events)} events left")
            else:
                at += step
        if step == 1 and not shrunk:
            break
        step = max(1, step // 2)
    return (*before, last)
