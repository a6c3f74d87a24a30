"""Opening a disk against its source: a copy begins, goes on, or comes back.

    begins   the store is new: it notes what it is taken from (its base), and samples
    goes on  the source must still be the disk that the copy was begun from
             (one that was unsealed by force goes on without: then this one is outdated)
    returns  the disk was sealed here and its successor is the source: what diverged there is absent
             (all of it, if something else has written the image since)
             (started as ever, by the source that it once came from, it is served on; if it has
             moved back there, so that the VM may run there, it returns in standby only)

Everything is checked before anything is changed, and while nbdkit still has a terminal to tell it.

Where the VM has stopped at the source already, the source is sealed for this disk before it opens.
The store says first what that seal is to be called, as in any activation: so what was killed on the
way goes on by the same seal, and nobody else is given it. If it is started to stand by then, the VM
has gone on at the source: that is given up, and the source told.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from relocator.config import Config
from relocator.errors import ConfigError, StateError, UpstreamError
from relocator.source.answer import Answer, base_of
from relocator.source.bitmaps import DirtyBitmap
from relocator.source.identity import mismatch, samples_at, unsealed, written_since
from relocator.source.remote import Source
from relocator.source.upstream import probe_size
from relocator.store import meta as metadata
from relocator.store.geometry import Geometry, suited_block_bytes
from relocator.store.meta import Meta, Takeover, new_token
from relocator.store.opening import (
    check_disk,
    check_same,
    check_size,
    is_written_outside,
    open_store,
    open_target,
)
from relocator.store.store import Store

_MOVED_BACK = (
    "this disk has moved back to its source, and is served as it was then; to bring it here again, "
    "start it with --mode standby, then `relocator activate`"
)
_UNKNOWN = "whether this disk has moved back to its source is not known, as that can't be asked"


def open_disk(settings: Config) -> Store:
    """Open the disk that `settings` name: one that is all here, or a copy.

    Raises:
        ConfigError: disk, store or source doesn't fit.
    """
    if settings.source is None and settings.disk is not None:
        return open_target(settings.disk, settings.store, settings.block_bytes)
    return _copy_of(settings)


def _copy_of(settings: Config) -> Store:
    """The store of a copy that begins, goes on, is complete, or returns."""
    assert settings.store is not None
    found = metadata.read(settings.store)
    if found is not None and found.creating:
        found = None  # it holds nothing, and nobody was promised anything
    if found is not None and settings.disk is not None:
        check_disk(settings.store, found, settings.disk)
    if found is not None and found.complete and (found.seal is None or settings.source is None):
        return open_store(settings.store, found)
    if found is not None and found.outdated:
        return open_store(settings.store, found)
    if (endpoint := settings.endpoint) is None:
        what = f"the store {settings.store} is new" if found is None else "the copy is not complete"
        raise ConfigError(f"source is missing: {what}; give source=nbd://HOST[:PORT]")
    source = Source(endpoint)
    started_again = found is not None and found.source == settings.source
    try:
        size_bytes = probe_size(endpoint)
    except UpstreamError as error:
        if found is None or (found.complete and not started_again):
            message = f"source={settings.source}: can't be connected to: {error}"
            raise ConfigError(message) from error
        return _open(settings, found)  # what is here can be served meanwhile
    if found is not None and found.complete and started_again:
        # The same command as ever: it may be needed where it has moved to, or be there again.
        try:
            no_return = _no_return(found, source.identify())
            note = () if no_return else (_MOVED_BACK,)
        except UpstreamError as error:
            no_return, note = str(error), (f"{_UNKNOWN}: {error}",)
        if no_return or not settings.standby:
            store = open_store(settings.store, found)
            store.found += note
            return store
    check_size(f"source={settings.source}", size_bytes)
    if found is None:
        return _begin(settings, source, size_bytes)
    wanted = replace(
        found, size_bytes=size_bytes, block_bytes=settings.block_bytes or found.block_bytes
    )
    check_same(settings.store, found, wanted)
    return _return(settings, source, found) if found.complete else _resume(settings, source, found)


def _begin(settings: Config, source: Source, size_bytes: int) -> Store:
    assert settings.store is not None
    base, block_bytes = None, settings.block_bytes
    if (answer := source.identify()) is not None:
        _check_has_it(settings, answer)
        block_bytes = block_bytes or answer.geometry(size_bytes).block_bytes
        base = base_of(source.call("epoch") if settings.standby else answer)
    _check_bitmap(settings, source, ours=base is not None)
    seals = base is not None and not settings.standby
    stands_still = base is None and not settings.standby
    fresh = Meta(
        id=new_token(),
        size_bytes=size_bytes,
        block_bytes=block_bytes or suited_block_bytes(size_bytes),
        source=settings.source,
        complete=False,
        standby=settings.standby or seals,
        base=base,
        bitmap=settings.source_bitmap,
        takeover=Takeover(new_token(), at_start=True) if seals else None,
        disk=None if settings.disk is None else str(settings.disk),
        origin_id=None if base is None else base.id,
        origin_kept=answer is not None and answer.kept,
        origin_samples=samples_at(source.endpoint) if stands_still else None,
    )
    store = open_store(settings.store, fresh)
    if seals:
        with _let_go_of(store):
            try:
                answer = _seal(settings, store, source)
            except ConfigError:
                store.update(creating=True)
                raise
            store.update(**_taken_over(source, answer))
    return store


def _check_has_it(settings: Config, answer: Answer | None) -> None:
    """A disk that has moved on goes to no other site from there; nor is it copied ahead in vain."""
    if settings.standby and answer is not None and answer.fields.get("moved"):
        raise ConfigError(
            f"source={settings.source}: this disk has moved to another proxy, and goes to no "
            "other one from here; give the site that has it (if that is lost for good, "
            "`relocator unseal --force` at this source)"
        )


def _seal(settings: Config, store: Store, source: Source) -> Answer:
    """Have the source sealed for this disk, by the name that the store says."""
    if (takeover := store.meta.takeover) is None:
        takeover = Takeover(new_token(), at_start=True)
        store.update(takeover=takeover)
    try:
        return source.call(f"seal/{takeover.token}")
    except StateError as error:
        raise ConfigError(f"source={settings.source}: {error}") from error


def _taken_over(source: Source, answer: Answer) -> dict[str, Any]:
    """What is known of a source that was sealed, as changes of `Meta`: the disk is active."""
    return {
        "standby": False,
        "takeover": None,
        "base": base_of(answer),
        "origin_id": answer["id"],
        "origin_kept": answer.kept,
        "origin_samples": samples_at(source.endpoint),
        "origin_seal": answer["seal"],
        "untold": True,
    }


def _stands_by(answer: Answer, takeover: Takeover | None) -> dict[str, Any]:
    """The same of one that goes on; it is told of a `takeover` that did not come to its end."""
    return {
        "standby": True,
        "takeover": None if takeover is None else replace(takeover, withdrawn=True),
        "base": base_of(answer),
        "origin_id": answer["id"],
        "origin_kept": answer.kept,
        "origin_samples": None,
        "origin_seal": None,
        "untold": False,
    }


@contextmanager
def _let_go_of(store: Store) -> Iterator[None]:
    """Let go of the store if it can't be served."""
    try:
        yield
    except BaseException:
        store.abandon()
        raise


def _check_bitmap(settings: Config, source: Source, *, ours: bool) -> None:
    """A bitmap must be there before anything is copied that it is to speak of."""
    if (name := settings.source_bitmap) is None:
        return
    if ours:
        raise ConfigError(f"source-bitmap={name}: the source is a relocator; leave it out")
    if not DirtyBitmap(source.endpoint, name).exists():
        raise ConfigError(
            f"source-bitmap={name}: {settings.source} offers no such bitmap; add it by QMP at the "
            f"source (block-dirty-bitmap-add with name={name}), and export the disk with it "
            f'(block-export-add with bitmaps=["{name}"])'
        )


def _open(settings: Config, found: Meta) -> Store:
    """The store; what was copied ahead by another bitmap than now is dropped.

    A start that was to take the disk over, and failed, is given up by one that is to stand by.
    """
    assert settings.store is not None
    store = open_store(settings.store, found)
    if settings.standby and found.standby and found.takeover and found.takeover.at_start:
        store.update(**metadata.given_back(found))
    if found.standby and found.base is None and found.bitmap != settings.source_bitmap:
        store.drop([(0, store.geometry.total_blocks)])
        store.commit()
        store.update(bitmap=settings.source_bitmap)
    return store


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
    if found.standby or answer is None:
        return _open(settings, found)
    if unsealed(found, answer):
        store = open_store(settings.store, found)
        store.update(outdated=True)
        return store
    if found.origin_seal is not None and answer["seal"] != found.origin_seal:
        _check_unchanged(settings, source, found)
    return _open(settings, found)


def _check_unchanged(settings: Config, source: Source, found: Meta) -> None:
    """A source with its maps in memory forgets its seal when it restarts: it is sealed anew."""
    geometry = Geometry(found.size_bytes, found.block_bytes)
    if written_since(source.call(f"seal/{found.origin_seal}"), found, geometry):
        raise ConfigError(
            f"source={settings.source}: was written after the disk had moved to "
            f"{settings.store}; one of the two must be given up"
        )


def _no_return(found: Meta, answer: Answer | None) -> str | None:
    """Why the sealed disk can't return from who gives this answer to `identify`; None: it can."""
    base = None if answer is None else answer["base"]
    if answer is None or base is None or (base["id"], base["seal"]) != (found.id, found.seal):
        return (
            "is not the successor of the sealed disk; give the site it has moved to, or another "
            "store"
        )
    if answer.fields.get("complete") is False:  # each would pass the other's reads back to it
        return (
            "is not complete yet, and what it lacks is only in the disk that is to return; serve "
            "that again without source= until the copy there is complete"
        )
    return None


def _return(settings: Config, source: Source, found: Meta) -> Store:
    """The disk comes back: only what diverged at its successor is absent here."""
    assert settings.store is not None
    successor = source.identify()
    if why := _no_return(found, successor):
        raise ConfigError(f"source={settings.source}: {why}")
    _check_has_it(settings, successor)
    store = open_store(settings.store, found, returns=True)
    written_outside = is_written_outside(found, store.image)
    with _let_go_of(store):
        if settings.standby:
            answer = source.call("epoch")
            known = _stands_by(answer, found.takeover)
        else:
            answer = _seal(settings, store, source)
            known = _taken_over(source, answer)
        # What was written here is forgotten from here on, also if this comes to nothing.
        store.update(base=None, epoch=found.epoch + 1)
        if written_outside:
            store.begin_copy([(0, store.geometry.total_blocks)])
            store.found = ("the image was written by something else: all of it is copied",)
        else:
            store.begin_copy(answer.blocks("diverged", store.geometry))
        store.update(
            **known,
            complete=False,
            source=settings.source,
            seal=None,
            asked=False,
            moved=False,
            epoch=found.epoch + 1,
        )
    return store
