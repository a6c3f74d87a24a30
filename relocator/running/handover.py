"""How authority over a disk moves from site to site.

At the source: `epoch` begins the dirty map anew, `seal` drains the writes in progress, makes all
durable and refuses further ones; its token names the content that was frozen. At the destination: a
copy notes what it was taken from (its *base*: id, epoch, seal), and `activate` seals the source,
drops what was fetched too early, and only then lets writes pass.

    standby:  epoch e at the source; copy ahead (pre-seed); reads pass through
    activate: seal -> dirty since e -> drop those blocks -> durable -> active
    return:   a sealed disk whose seal is its successor's base takes back only what diverged there

The order in `activate` matters: the source stands still before the first stale block is dropped,
and whatever was asked of it before that is disowned, so nothing older than the seal can arrive
afterwards.

`_lock` lets one verb at a time change authority; it is held across I/O, and guards nothing else.
"""

import threading
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from relocator.config import DEFAULT_BLOCK_BYTES, Config
from relocator.copying.hints import learn
from relocator.errors import ConfigError, RelocatorError, StateError, UpstreamError
from relocator.running import states
from relocator.running.states import State
from relocator.source.connection import backoff
from relocator.source.identity import mismatch, samples_at
from relocator.source.upstream import probe_size
from relocator.source.verbs import Answer, Source
from relocator.source.verify import compare
from relocator.store import meta as metadata
from relocator.store.meta import Base, Meta, new_token
from relocator.store.opening import check_same, open_store
from relocator.store.store import Store

if TYPE_CHECKING:
    from relocator.running.engine import Engine

#: at most so long until the source is told again, and asked again what the order may rest on
AGAIN_S = 30.0


def initial_state(meta: Meta) -> State:
    """The state a disk is opened in."""
    if meta.complete:
        return State.COMPLETE if meta.seal is None else State.SEALED
    if meta.seal is not None:
        return State.RELAYING
    return State.STANDBY if meta.standby else State.ACTIVE


class Handover:
    """The verbs that move authority, for one engine."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._lock = threading.Lock()
        endpoint = engine.settings.endpoint
        self._source = None if endpoint is None else Source(endpoint)

    @property
    def source_is_ours(self) -> bool:
        """Whether the source was found to be a relocator when the copy began."""
        return self._engine.store.meta.base is not None

    def begin(self) -> None:
        """Make ready, beside the requests, what the handover will want."""
        in_standby = self._engine.state is State.STANDBY
        if self._source is not None and (self.source_is_ours or not in_standby):
            job = self._prepare if in_standby else self._after_activation
            threading.Thread(target=job, name="handover", daemon=True).start()

    def identify(self) -> dict[str, Any]:
        """Who this disk is."""
        meta = self._engine.store.meta
        return {
            "id": meta.id,
            "epoch": meta.epoch,
            "seal": meta.seal,
            "moved": meta.moved,
            "base": None if meta.base is None else vars(meta.base),
            "group_bytes": self._engine.heat.group_bytes,
            "block_bytes": meta.block_bytes,
        }

    def epoch(self) -> dict[str, Any]:
        """Begin the dirty map anew."""
        with self._lock, self._engine.gate.held():
            self._engine.store.begin_epoch()
        return self.identify()

    def seal(self) -> dict[str, Any]:
        """Refuse writes from here on; all that were acknowledged are durable. Again: the same."""
        engine = self._engine
        with self._lock:
            if engine.store.meta.seal is None:
                after = states.after(engine.state, "seal")
                engine.gate.shut("sealed: the disk has moved to another site")
                engine.store.update(seal=new_token(), moved=False)
                engine.state = after
        return self.identify()

    def moved(self) -> dict[str, Any]:
        """The proxy that sealed this disk is active: the seal can't be undone any more."""
        self._engine.store.update(moved=True)
        return self.identify()

    def unseal(self) -> dict[str, Any]:
        """Undo a seal.

        Raises:
            StateError: a proxy is active: it may have accepted writes already.
        """
        engine = self._engine
        with self._lock:
            if engine.store.meta.moved:
                raise StateError("'unseal' is refused: a proxy is active with this disk")
            after = states.after(engine.state, "unseal")
            engine.store.update(seal=None)
            engine.state = after
            engine.gate.open()
        return self.identify()

    def activate_by_write(self, refusal: StateError) -> None:
        """The guest's first write at this site says that it has moved."""
        if self._engine.state is not State.STANDBY:
            raise refusal
        self.activate()

    def activate(self) -> dict[str, Any]:
        """Take over the disk: the guest may write here once this returns.

        Raises:
            UpstreamError: the source could not be sealed; nothing has changed.
        """
        engine = self._engine
        with self._lock:
            if engine.state is not State.STANDBY:
                return {"dropped_blocks": 0}
            dropped = self._take_over()
            engine.state = states.after(engine.state, "activate")
            engine.disk.pass_through = False
            engine.gate.open()
        if engine.copier is not None:
            engine.copier.set_enabled(engine.settings.background)
        engine.check_complete()
        threading.Thread(target=self._after_activation, name="handover", daemon=True).start()
        return {"dropped_blocks": dropped}

    def _take_over(self) -> int:
        """Seal the source and drop what is older than the seal; returns the blocks dropped."""
        store, hydration = self._engine.store, self._engine.hydration
        if self._source is None or hydration is None or store.meta.base is None:
            store.update(standby=False)
            return 0  # its samples are taken afterwards: now the guest waits
        answer = self._source.call("seal")
        hydration.disown_fetches()
        dropped = store.drop(_stale(store, answer))
        store.update(standby=False, base=_base(answer), origin_id=answer["id"])
        return dropped

    def verify(self) -> dict[str, Any]:
        """Compare every block that was fetched and never written here with the source.

        Raises:
            StateError: blocks differ, or the source can't be asked.
        """
        if self._source is None or not self.source_is_ours:
            raise StateError("'verify' needs a source that is a relocator")
        return compare(self._engine.store, self._source)

    def _prepare(self) -> None:
        try:
            if self._source is not None:
                self._source.prepare("seal")
        except UpstreamError:
            return  # it is connected to at the switch, then; that costs a few round trips

    def _after_activation(self) -> None:
        """Tell the source, and learn what the order may rest on; again if it can't be reached."""
        if self._source is None:
            return
        engine, said = self._engine, ""
        for delay_s in backoff(1.0, limit_s=AGAIN_S):
            try:
                self._tell_and_learn(self._source)
            except RelocatorError as error:
                engine.failure = said = f"nothing more is known of the source: {error}"
            except Exception as error:  # ours, but no guest waits for this: the log has it
                traceback.print_exc()
                what = f"{type(error).__name__}: {error}"
                engine.failure = f"nothing more is known of the source, by a mistake: {what}"
                return
            else:
                if engine.failure == said:
                    engine.failure = None
                return
            if not engine.unfinished_after(delay_s):
                return

    def _tell_and_learn(self, source: Source) -> None:
        if self.source_is_ours:
            source.call("moved")
        if self._engine.store.meta.origin_samples is None:
            self._engine.store.update(origin_samples=samples_at(source.endpoint))
        learn(self._engine, source, ours=self.source_is_ours)


def _base(answer: Answer) -> Base:
    return Base(answer["id"], answer["epoch"], answer["seal"])


def _stale(store: Store, answer: Answer) -> list[tuple[int, int]]:
    """What changed at the source since the copy began; everything, if that can't be told."""
    base, total = store.meta.base, store.geometry.total_blocks
    same = base is not None and (base.id, base.epoch) == (
        answer["id"],
        answer["epoch"],
    )
    if not same or answer["block_bytes"] != store.meta.block_bytes:
        return [(0, total)]
    return answer.map("dirty", total)


def copy_of(settings: Config) -> Store:
    """Open the store that `settings` name: a copy that begins, goes on, is complete, or returns.

    Raises:
        ConfigError: store and source don't fit each other.
    """
    assert settings.store is not None
    found = metadata.read(settings.store)
    if found is not None and found.complete and (found.seal is None or settings.source is None):
        return open_store(settings.store, found)
    if (endpoint := settings.endpoint) is None:
        what = f"the store {settings.store} is new" if found is None else "the copy is not complete"
        raise ConfigError(f"source is missing: {what}; give source=nbd://HOST[:PORT]")
    source = Source(endpoint)
    try:
        size_bytes = probe_size(endpoint)
    except UpstreamError as error:
        if found is None or found.complete:
            message = f"source={settings.source}: can't be connected to: {error}"
            raise ConfigError(message) from error
        return open_store(settings.store, found)  # what is here can be served meanwhile
    if found is None:
        return _begin(settings, source, size_bytes)
    wanted = replace(
        found, size_bytes=size_bytes, block_bytes=settings.block_bytes or found.block_bytes
    )
    check_same(settings.store, found, wanted)
    return _return(settings, source, found) if found.complete else _resume(settings, source, found)


def _begin(settings: Config, source: Source, size_bytes: int) -> Store:
    assert settings.store is not None
    base = None
    if source.identify() is not None:
        base = _base(source.call("epoch" if settings.standby else "seal"))
    samples = None if settings.standby else samples_at(source.endpoint)  # it stands still by now
    fresh = Meta(
        id=new_token(),
        size_bytes=size_bytes,
        block_bytes=settings.block_bytes or DEFAULT_BLOCK_BYTES,
        source=settings.source,
        complete=False,
        standby=settings.standby,
        base=base,
        disk=None if settings.disk is None else str(settings.disk),
        origin_id=None if base is None else base.id,
        origin_samples=samples,
    )
    return open_store(settings.store, fresh)


def _resume(settings: Config, source: Source, found: Meta) -> Store:
    """Go on with a copy, if the source is still what it was."""
    assert settings.store is not None
    answer = source.identify()
    why = None
    if not found.standby:
        why = mismatch(found, answer, lambda: samples_at(source.endpoint))
    elif found.base is not None and (answer is None or answer["id"] != found.base.id):
        why = "it has another id"
    if why is not None:
        raise ConfigError(
            f"source={settings.source}: is not the disk that the store {settings.store} was "
            f"copied from ({found.source}): {why}; give that source, or another store"
        )
    if found.base is not None and not found.standby and answer is not None:
        _check_unchanged(settings, source, found)
    return open_store(settings.store, found)


def _check_unchanged(settings: Config, source: Source, found: Meta) -> None:
    """A source with its maps in memory forgets its seal when it restarts: it is sealed anew."""
    assert found.base is not None
    answer = source.call("seal")
    total = -(-found.size_bytes // found.block_bytes)
    if answer["seal"] != found.base.seal and answer.map("dirty", total):
        raise ConfigError(
            f"source={settings.source}: was written after the disk had moved to "
            f"{settings.store}; one of the two must be given up"
        )


def _return(settings: Config, source: Source, found: Meta) -> Store:
    """The disk comes back: only what diverged at its successor is absent here."""
    assert settings.store is not None
    answer = source.identify()
    base = None if answer is None else answer["base"]
    if answer is None or base is None or (base["id"], base["seal"]) != (found.id, found.seal):
        raise ConfigError(
            f"source={settings.source}: is not the successor of the sealed disk in "
            f"{settings.store}; give the site it has moved to, or another store"
        )
    answer = source.call("epoch" if settings.standby else "seal")
    store = open_store(settings.store, found)
    store.begin_copy(answer.map("diverged", store.geometry.total_blocks))
    store.update(
        complete=False,
        standby=settings.standby,
        source=settings.source,
        base=_base(answer),
        origin_id=answer["id"],
        origin_samples=None if settings.standby else samples_at(source.endpoint),
        seal=None,
        moved=False,
        epoch=found.epoch + 1,
    )
    return store
