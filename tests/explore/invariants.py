"""What must hold in every state, and what makes an end a good one."""

from collections.abc import Iterator

from relocator.running.states import state_of
from relocator.store import meta as metadata
from relocator.store.maps import DurableMap
from tests.explore.site import BLOCK_BYTES, Site
from tests.explore.world import World

Content = tuple[tuple[bool, ...], tuple[int, ...]]


def broken(world: World) -> list[str]:
    """What doesn't hold in this state."""
    return [*world.broken, *_defects(world), *_authority(world), *_reach(world), *_promises(world)]


def _defects(world: World) -> Iterator[str]:
    for task, error in world.kernel.defects:
        yield f"the thread {task.name} died: {type(error).__name__}: {error}"


def _writers(world: World) -> list[str]:
    return [name for name, site in world.sites.items() if site.writable]


def _authority(world: World) -> Iterator[str]:
    """Never two sites that both acknowledge writes."""
    writers = _writers(world)
    if len(writers) > 1 and world.plan.roams and not world.forced:
        yield f"{' and '.join(writers)} both acknowledge writes"


def two_versions(world: World) -> list[str]:
    """What is wrong once the sites have spoken to each other: after force, too, one has stopped."""
    writers = _writers(world)
    return [f"{' and '.join(writers)} still acknowledge writes"] if len(writers) > 1 else []


def _reach(world: World) -> Iterator[str]:
    """Who serves has, or can fetch, every acknowledged write."""
    for name in _writers(world):
        if world.forced or not (world.plan.roams or name == world.guest):
            continue
        for block, allowed in enumerate(world.ledger.allowed):
            found = read(world, world.sites[name], block)
            if found not in allowed:
                wanted = " or ".join(f"{value:#x}" for value in sorted(allowed))
                what = "nothing" if found is None else f"{found:#x}"
                yield f"block {block} reads as {what} at {name}, not as {wanted}"


def _promises(world: World) -> Iterator[str]:
    """What a server says of itself is what a crash leaves."""
    for site in world.sites.values():
        if site.engine is None or site.settings.store is None or site.life._lock.locked():
            continue
        if site.store._update_lock.locked():
            continue
        meta = site.meta
        kept = metadata.read(site.settings.store)
        text = site.storage.durable().get(str(site.settings.store / "meta.json"), b"").decode()
        if meta is not None and meta.moved and meta.seal not in world.gone_on_from:
            yield f"{site.name} says that it has moved, although nobody went on from that seal"
        if kept != meta and meta is not None and kept is not None:
            yield f"{site.name} answers what its file doesn't say"
        elif kept is not None and f'"seal": {_quoted(kept.seal)}' not in text:
            yield f"the seal that {site.name} tells of would not survive a power failure"
        elif kept is not None and f'"moved": {str(kept.moved).lower()}' not in text:
            yield f"that {site.name} knows of the move would not survive a power failure"
        assert site.meta is not None
        expected = state_of(site.meta)
        if site.life.state is not expected:
            yield f"{site.name} is {site.life.state}, but would be {expected} once restarted"


def _quoted(text: str | None) -> str:
    return "null" if text is None else f'"{text}"'


def read(world: World, site: Site, block: int) -> int | None:
    """The first byte of a block as a guest at that site would read it, once all links work.

    None if it can't: nobody has it, or the site that is asked for it asks this one.
    """
    asked: set[str] = set()
    while site.name not in asked:
        asked.add(site.name)
        here, values = content(site)
        if here[block] and not (site.engine is not None and site.life.pass_through):
            return values[block]
        if site.settings.source is None:
            return None
        site = world.sites[site.settings.source.removeprefix("nbd://")]
    return None


def content(site: Site) -> Content:
    """Which blocks are here, and the first byte of each; of a server that is down, by its files."""
    if site.engine is not None:
        return site.content()  # type: ignore[return-value]
    if not site.left:
        site.left = _on_disk(site)
    return site.left  # type: ignore[return-value]


def _on_disk(site: Site) -> Content:
    directory = site.settings.store
    meta = None if directory is None else metadata.read(directory)
    path = site.settings.disk or (directory / "disk.img" if directory else None)
    assert path is not None
    image = path.read_bytes() if path.exists() else b""
    values = tuple(image[at] for at in range(0, len(image), BLOCK_BYTES))
    if directory is None or (meta is not None and meta.complete):
        return tuple(True for _ in values), values
    if meta is None or meta.creating:
        return tuple(False for _ in values), values
    durable = DurableMap(directory / "map.durable", len(values))
    try:
        bits = dict(durable.committed())
    finally:
        durable.close()
    present = bits.get(0, bytes(1))
    return tuple(bool(present[at // 8] >> at % 8 & 1) for at in range(len(values))), values


def good_end(world: World) -> bool:
    """One site acknowledges writes, has every acknowledged write, and nobody waits in vain."""
    writers = _writers(world)
    if len(writers) != 1 or broken(world):
        return False
    return not any("/verb" in task.name or "/write" in task.name for task in world.kernel.tasks)
