"""Whether a source that comes back is still the one the copy was begun from.

Same size is not same disk: blocks of another one, mixed with what is here, would be a corruption
that nothing detects. A relocator with a store has an id of its own, which decides. Everything else
is known by *samples*, digests of a few places of the disk: those that differ between any two disks
that were partitioned or formatted apart (the first blocks, the last, the usual place of the first
partition's superblock), and some spread over the rest. They are taken once the source stands still,
so a restart of any server on the same image is accepted, also of a relocator that kept its maps in
memory. Two disks that are equal in all samples, clones of one template perhaps, are not told apart.

In standby the source is still written and samples mean nothing; there it must have the id that the
copy's base names. One that keeps no store has another each time it is started: it is let in once a
round, or the switch, has dropped all that was copied and noted its new id (see running/epochs.py).
Where a QEMU's bitmap says what was written, it must have that, and what was fetched from it and not
written since, at the places that are sampled.

A source that is the same may go on nevertheless: it was unsealed by force. It keeps its seal as
long as it keeps its id, so it is known by having no seal, or another.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from typing import Any

from relocator.errors import OtherDiskError, OutdatedError, StateError, UpstreamError
from relocator.source.answer import Answer, check_id
from relocator.source.bitmaps import DirtyBitmap
from relocator.source.endpoint import Endpoint
from relocator.source.handles import check_size, connected, read_many
from relocator.source.remote import Source
from relocator.store import skipped
from relocator.store.bitmap import Bitmap
from relocator.store.geometry import Extent, Geometry
from relocator.store.meta import Meta
from relocator.store.store import Store

_SAMPLE_BYTES = 4096
_SPREAD = 14
_UNSEALED = "the source was unsealed by force: it goes on with another version of this disk"
_PARTITION_BYTES = 1 << 20  # where tools let the first partition begin


def places(size_bytes: int) -> list[Extent]:
    """The extents that are sampled, ascending, each within the disk."""
    step = (size_bytes // _SPREAD // _SAMPLE_BYTES + 1) * _SAMPLE_BYTES
    starts = {0, _SAMPLE_BYTES, _PARTITION_BYTES, max(0, size_bytes - _SAMPLE_BYTES)}
    starts.update(range(0, size_bytes, step))
    return [
        Extent(start, min(_SAMPLE_BYTES, size_bytes - start))
        for start in sorted(starts)
        if start < size_bytes
    ]


def samples(handle: Any) -> str:
    """The digests of a disk's samples, read in one round trip over a handle nothing else uses.

    A place that can't be read has `-` for a digest: a bad block must not make a disk a stranger.

    Raises:
        UpstreamError: the connection is lost or silent, or none of them can be read.
    """
    found = read_each(handle, places(handle.get_size()))
    if found and found.count(None) == len(found):
        raise UpstreamError("the source can't read any of the places that it is known by")
    return " ".join("-" if data is None else _digest(data) for data in found)


def read_each(handle: Any, wanted: list[Extent]) -> list[bytes | None]:
    """What is at each place, None where it can't be read.

    Raises:
        UpstreamError: the connection is lost or silent, which says nothing of any place.
    """
    try:
        return [*read_many(handle, wanted)]
    except UpstreamError as error:
        if error.is_away:
            raise
        return [_read_one(handle, place) for place in wanted]


def _read_one(handle: Any, place: Extent) -> bytes | None:
    try:
        return read_many(handle, [place])[0]
    except UpstreamError as error:
        if error.is_away or not handle.aio_is_ready():
            raise
        return None


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def agree(known: str, found: str) -> bool:
    """Whether some place could be read both times, and none of these has changed.

    A disk without a byte has no place, and nothing to be another's.
    """
    if known == found == "":
        return True
    pairs = zip_longest(known.split(), found.split())
    read = [(one, other) for one, other in pairs if "-" not in (one, other)]
    return bool(read) and all(one == other for one, other in read)


def samples_at(endpoint: Endpoint) -> str | None:
    """`samples` over a connection of its own; None if they can't be had."""
    try:
        with connected(endpoint) as handle:
            return samples(handle)
    except UpstreamError:
        return None


def mismatch(meta: Meta, answer: Answer | None, sample: Callable[[], str | None]) -> str | None:
    """Why the source is not the one that `meta` was copied from; None if nothing says so.

    `answer` is the source's to `identify`, None if it is not ours.
    """
    if answer is not None and answer["id"] == meta.origin_id:
        return None
    if answer is not None and answer.kept and meta.origin_kept:
        return "it has another id"  # and each has one for good, however alike they are
    if meta.origin_samples is not None:
        found = sample()
        if found is None:
            return "it can't be read"
        return None if agree(meta.origin_samples, found) else "its content is another"
    return None if meta.origin_id is None else "it has another id"


def takes_back(meta: Meta, answer: Answer) -> bool:
    """Whether the source, by its answer to `identify`, is the next site of the disk of `meta`.

    Where it was that before this disk came back from there, it still names the seal of then.
    """
    base = answer["base"]
    if base is None or base["id"] != meta.id:
        return False
    return base["seal"] in (None, meta.seal, *meta.void_seals)


def unsealed(meta: Meta, answer: Answer) -> bool:
    """Whether the source has undone, by force, the seal by which it gave the disk up.

    `answer` is the source's to `identify`, and `meta` was read after it came. One that takes the
    disk back has not.
    """
    if meta.origin_seal is None or answer["id"] != meta.origin_id or takes_back(meta, answer):
        return False
    return answer["seal"] != meta.origin_seal or bool(answer.fields.get("outdated"))


def check_fetched(
    store: Store, handle: Any, written: Callable[[], Bitmap | None] = lambda: None
) -> None:
    """Refuse a disk that lacks, at a place that is sampled, what was fetched from it.

    `written` says what was written there since, once these places have been read.

    Raises:
        OtherDiskError: it lacks that.
        UpstreamError: it can't be read.
        StoreError: what was skipped as free, and so lacks nothing, is not known.
    """
    known = {place: data for place, data in _here(store) if any(data)}  # zeros prove too little
    theirs = read_each(handle, [*known])
    read = zip(known, theirs, strict=True)
    others = [place for place, data in read if data not in (None, known[place])]
    since = written() if others else None
    for place in others:
        if _is_fetched(store, place) and not (
            since is not None and since.any(*store.geometry.touched(*place))
        ):
            raise OtherDiskError(
                "the source has become another disk: it lacks what was fetched from it"
            )


def _here(store: Store) -> Iterator[tuple[Extent, bytes]]:
    """Sampled places that are here as they were fetched, and what they hold."""
    free = skipped.noted(store)
    for place in places(store.geometry.size_bytes):
        first, end = store.geometry.touched(*place)
        is_free = any(start < end and first < stop for start, stop in free)
        if not is_free and _is_fetched(store, place):
            data = bytearray(place.length)
            with suppress(OSError):  # what can't be read here proves nothing
                store.image.read_into(data, place.offset)
                if _is_fetched(store, place):
                    yield place, bytes(data)


def _is_fetched(store: Store, place: Extent) -> bool:
    first, end = store.geometry.touched(*place)
    with store.lock:
        return store.present.all(first, end) and not store.diverged.any(first, end)


def written_since(answer: Answer, meta: Meta, geometry: Geometry) -> bool:
    """Whether a source that had forgotten its seal was written before it was sealed again.

    One that keeps no maps has begun anew with another id: all that was written since has diverged,
    while another proxy may have begun an epoch meanwhile.
    """
    name = "dirty" if answer["id"] == meta.origin_id else "diverged"
    return bool(answer.blocks(name, geometry))


def _held_by(meta: Meta) -> tuple[bool, str | None, str | None]:
    """Where the disk is, by which seal, and of which source."""
    return meta.standby, meta.origin_seal, None if meta.base is None else meta.base.id


class Guard:
    """Asked on each new connection to the source, before anything is believed of it.

    `be_outdated` is told, on the connection's thread, which seal the source has undone by force.
    `aside`: the connections are to other exports than the disk itself, which is looked at apart.
    """

    def __init__(
        self,
        store: Store,
        endpoint: Endpoint,
        be_outdated: Callable[[str], None] = lambda _seal: None,
        *,
        aside: bool = False,
    ) -> None:
        self._store = store
        self._endpoint = endpoint
        self._be_outdated = be_outdated
        self._aside = aside

    def check(self, handle: Any) -> None:
        """Refuse another disk, also where no block is here yet: the first ones would be its.

        A relocator that has forgotten its seal is sealed again, and known by its new id. The answer
        may take long. If the disk was given back or taken over meanwhile, it is looked at again:
        what is answered says nothing of another seal than the one that it is held against.

        Raises:
            OutdatedError: it was unsealed by force.
            OtherDiskError: it is another disk, was written meanwhile, or refuses to be sealed.
            StoreError: its new id can't be noted: until then no unsealing of it would be found out.
            UpstreamError: it can't be asked.
        """
        while True:
            meta = self._store.meta
            self._look(handle, meta)
            if self._is_in_force(meta):
                return

    def _is_in_force(self, meta: Meta) -> bool:
        """Whether the disk is held as it was when `meta` was read."""
        return _held_by(self._store.meta) == _held_by(meta)

    def _look(self, handle: Any, meta: Meta) -> None:
        """As `check`, by what was known of the source when `meta` was read."""
        if meta.outdated:
            raise OutdatedError(_UNSEALED)
        if not self._aside:
            check_size(handle, meta.size_bytes)
        if meta.standby:
            self._check_standing_by(handle, meta)
            return
        try:
            self._check(handle, meta)
        except StateError as error:
            raise OtherDiskError(f"the source may change: {error}") from error

    def _check_standing_by(self, handle: Any, meta: Meta) -> None:
        """Refuse a disk that is not the one of which is copied ahead; errors as of `check`."""
        if meta.base is None:
            if meta.bitmap is not None:  # else nothing is
                self._check_recorded(handle, meta.bitmap)
            return
        answer = Source(self._endpoint).identify()
        if answer is None:
            raise OtherDiskError("the source has become another disk: it is no relocator")
        check_id(meta, answer)
        if answer["id"] != meta.base.id:
            raise OtherDiskError(
                "the source was started again without a store, or has become another disk: the "
                "copy has to begin anew"
            )

    def _check_recorded(self, handle: Any, name: str) -> None:
        """Refuse a disk without the bitmap that says what holds, or that it can't be said of."""
        bitmap = DirtyBitmap(self._endpoint, name)
        if not bitmap.exists():
            raise OtherDiskError(
                f"the source has become another disk, or has no bitmap '{name}' any more"
            )

        def written() -> Bitmap | None:  # it may be large, and the link slow
            try:
                return bitmap.read(self._store.geometry)
            finally:
                bitmap.close()

        check_fetched(self._store, handle, written)

    def _check(self, handle: Any, meta: Meta) -> None:
        source = Source(self._endpoint)
        answer = None if meta.origin_id is None else source.identify()
        sample = partial(samples_at, self._endpoint) if self._aside else partial(samples, handle)
        why = mismatch(meta, answer, sample)
        if why is not None:
            raise OtherDiskError(f"the source has become another disk: {why}")
        if answer is None or not self._is_in_force(meta):
            return
        if meta.origin_seal is not None and unsealed(self._store.meta, answer):
            self._be_outdated(meta.origin_seal)
            raise OutdatedError(_UNSEALED)
        seal = f"/{meta.origin_seal}" if meta.origin_seal else ""
        if forgot := answer["seal"] is None:
            answer = source.call(f"seal{seal}")
        elif answer["id"] != meta.origin_id:
            answer = self._with_maps(source, answer)
        renamed = answer["id"] != meta.origin_id and meta.origin_seal in (None, answer["seal"])
        if (forgot or renamed) and written_since(answer, meta, self._store.geometry):
            raise OtherDiskError("the source was written after the disk had moved here")
        if forgot:
            source.call(f"moved{seal}")
        if renamed:
            self._store.update(origin_id=answer["id"])

    @staticmethod
    def _with_maps(source: Source, answer: Answer) -> Answer:
        again = source.call("identify")
        if again["id"] != answer["id"]:
            raise UpstreamError("the source was started again at this moment")
        return again
