"""What tells two states apart: all that is durable, all that the servers remember, all on its way.

Of a thread that is under way it is where it stands, in every function, with its local variables.
Times and numbers of attempts are left out; names that were drawn (tokens, ids) count only by which
of them are equal. Two states with one key have the same future.
"""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from hashlib import blake2b
from pathlib import Path
from types import FrameType
from typing import Any

from relocator.source.answer import Answer
from tests.explore.network import Handle
from tests.explore.site import Site
from tests.explore.threads import Event, Kernel, Thread
from tests.explore.world import World

_TOKEN = re.compile(r"[0-9a-f]{32}")
_HERE = str(Path(__file__).parent)
_TIMES = frozenset(
    {"delay_s", "began_s", "waited_s", "first_s", "timeout_s", "_timeout_s", "limit_s"}
)


def key_of(world: World) -> bytes:
    """16 bytes that stand for the state of `world`."""
    text = repr(tuple(_parts(world)))
    names: dict[str, str] = {}
    plain = _TOKEN.sub(lambda found: names.setdefault(found[0], f"#{len(names)}"), text)
    return blake2b(plain.encode(), digest_size=16).digest()


def _parts(world: World) -> Iterator[Any]:
    yield sorted(world.left.items()), world.ledger.key(), world.guest, world.forced
    yield world._writes, sorted(world.took_over), world.kernel.now_s, sorted(world.gone_on_from)
    yield sorted(world.network.cut)
    for site in world.sites.values():
        yield from _site(site)
        if world.left.get("power"):
            yield _durable(site)
    yield from _tasks(world.kernel)
    for handle in world.network.waiting:
        yield handle.asker, handle.export, len(handle.queued)
    yield sorted(
        (one.client.name, one.export, [data[:512] for _, data, _, _ in one.answers], one.carrying)
        for one in world.network.handles
        if one.answers or one.carrying
    )
    yield [(one.client.name, one.export) for one in world.network.late]


def _site(site: Site) -> Iterator[Any]:
    yield site.name, site.process.alive, site.settings.source, site.refused is None
    if site.engine is None:
        yield site.left, repr(site.meta), _live_map(site)
        return
    life, store, activation = site.life, site.store, site.engine._handover.activation
    bitmaps = [one.extract(0, one.bits) for one in (store.present, store.dirty, store.diverged)]
    yield repr(store.meta), bitmaps, site.content(), store.owes_commit
    yield life.gate._inside, life.gate._pause and life.gate._pause[0]
    for part in (life, life.gate, site.engine._handover, activation, activation._sealing):
        yield _memory(part)
    if activation._source is not None:
        yield _source(activation._source)
    if activation.rounds is not None:
        yield _memory(activation.rounds), _memory(activation.rounds._changes)
    if (transfer := site.engine._parts.transfer) is not None:
        data: Any = transfer.upstream
        yield data.connected, data._known, data.refusal is None, transfer.pacer.running
        yield transfer.pacer.paused
        yield [(one.offset, len(one.data), bytes(one.data[:1])) for one in data.flights]
        yield [(one.first, one.end, one.lost, one.storing) for one in transfer.hydration._claims]


def _live_map(site: Site) -> Any:
    """What a killed server has left of its map, or one that opens makes of it."""
    path = site.settings.store and site.settings.store / "map.live"
    return blake2b(path.read_bytes()).digest() if path and path.exists() else None


def _memory(part: Any) -> list[Any]:
    """What one of the product's objects remembers, but for counts and times."""
    found = []
    for name, value in sorted(vars(part).items()) if part is not None else ():
        if isinstance(value, Event):
            found.append((name, value.is_set()))
        elif isinstance(value, Thread):
            found.append((name, value.is_alive()))
        elif value is None or isinstance(value, bool | str | bytes | tuple | Exception):
            found.append((name, _value(value)))
    return found


def _source(source: Any) -> Any:
    return _handles(source._ready)


def _handles(known: dict[str, Handle]) -> list[Any]:
    return [(verb, one.broken, len(one.queued)) for verb, one in sorted(known.items())]


def _durable(site: Site) -> Any:
    return [
        (path[len(str(site.storage.root)) :], blake2b(content, digest_size=8).digest())
        for path, content in sorted(site.storage.durable().items())
    ]


def _tasks(kernel: Kernel) -> Iterator[Any]:
    for task in sorted(kernel.tasks, key=lambda task: task.name):
        ready = task.ready is None or task.ready()
        yield task.name, task.timed, ready, [*_frames(task.greenlet.gr_frame)]


def _frames(frame: FrameType | None) -> Iterator[Any]:
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_HERE) or code.co_name in ("say", "write", "serve"):
            values = [
                (name, _value(one))
                for name, one in frame.f_locals.items()
                if name not in _TIMES and not name.endswith("_ns")
            ]
            yield code.co_name, frame.f_lasti, values
        frame = frame.f_back


def _value(value: Any) -> Any:
    if value is None or isinstance(value, str | int | bool | float | bytes):
        return value
    if isinstance(value, Answer):
        fields = {name: one for name, one in value.fields.items() if name != "time_s"}
        return sorted(fields.items(), key=str), sorted(value.attachments.items())
    if isinstance(value, tuple | list):
        return [_value(one) for one in value]
    if isinstance(value, dict) and all(isinstance(one, Handle) for one in value.values()):
        return _handles(value)  # ready, or about to be
    if is_dataclass(value) and not hasattr(value, "uri"):
        return repr(value) if "0x" not in repr(value) else type(value).__name__
    return type(value).__name__
