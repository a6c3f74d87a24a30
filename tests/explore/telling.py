"""A world in words."""

from tests.explore.plan import Action
from tests.explore.site import Site
from tests.explore.world import World

_WORDS = {"run": "goes on", "cut": "link cut", "heal": "link heals", "long": "an hour passes"}


def describe(world: World, action: Action) -> str:
    """An action in words, before it is done."""
    end = ""
    if "crash" in action:
        how = "is killed" if action[-2] == "kill" else "loses power"
        end = f"; the server {how} at its sync or store {action[-1]}"
        action = action[:-3]
    kind, *rest = action
    if kind in ("deliver", "late"):
        handle = (world.network.waiting if kind == "deliver" else world.network.late)[rest[0]]
        late = " late" if kind == "late" else ""
        asked = handle.export or "read"
        return f"{handle.server.name} gets{late} from {handle.client.name}: {asked}{end}"
    return f"{_WORDS.get(kind, kind)}: {' '.join(map(str, rest))}{end}"


def summary(world: World) -> str:
    """Each site in a word or two."""
    return ", ".join(_summary(site) for site in world.sites.values())


def _summary(site: Site) -> str:
    if site.engine is None:
        why = f": {site.refused}" if site.refused else ""
        return f"{site.name} {'opening' if site.process.alive else 'down'}{why}"
    moved = ", moved" if site.meta is not None and site.meta.moved else ""
    return f"{site.name} {site.life.state}{moved}{' (writes pass)' if site.writable else ''}"
