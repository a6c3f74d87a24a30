"""The way out: the faults have stopped, and an operator does what is left to do.

Links heal, servers are started again, and everything goes on until nothing more happens. If that
is no good end, verbs are tried, one after the other, until one is.
"""

from collections.abc import Callable

from tests.explore.invariants import broken, two_versions
from tests.explore.telling import summary
from tests.explore.world import World

#: what an operator tries, at each site that has the verb; the harmless first
_TRIES = (
    *(("p", "release"), ("q", "release"), ("p", "withdraw"), ("q", "withdraw")),
    *(("p", "activate"), ("q", "activate"), ("s", "activate")),
    *(("s", "unseal"), ("s", "unseal --force"), ("p", "unseal"), ("p", "unseal --force")),
)
_MOST_ROUNDS = 4


def recover(
    world: World,
    known: dict[bytes, list[str]],
    key_of: Callable[[World], bytes],
    is_good: Callable[[World], bool],
) -> list[str]:
    """Why no good end is reached from here; empty if one is. `known` ends are not tried again."""
    calm = _calm(world)
    if wrong := [*broken(world), *two_versions(world)]:
        return wrong
    if not calm:
        return ["something goes on for ever"]
    key = key_of(world)
    if key not in known:
        known[key] = _try(world, is_good)
    return known[key]


def _calm(world: World) -> bool:
    """Faults stop, and what was under way comes to its end."""
    world.left = dict.fromkeys(world.left, 0)
    for _ in range(_MOST_ROUNDS):
        world.network.cut.clear()
        for site in world.sites.values():
            if site.engine is None and not site.process.alive and _was_started(world, site.name):
                site.start()
        if not world.settle():
            return False
        world.after_step()
        world.kernel.now_s += 3600.0
    return True


def _was_started(world: World, name: str) -> bool:
    site = world.sites[name]
    return name in ("s", "p") or bool(site.left or site.boots)


def _try(world: World, is_good: Callable[[World], bool]) -> list[str]:
    tried = []
    for name, label in (("", ""), *_TRIES):
        site = world.sites.get(name)
        if site is not None and site.engine is not None:
            world.answered = []
            world._verb(name, label)
            world.settle()
            world.after_step()
            tried.append(f"{name} {label}: {'; '.join(world.answered)}")
        if is_good(world):
            return []
    return ["no verb leads to a good end", summary(world), *tried]
