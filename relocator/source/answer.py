"""What a source that is ours answers to a verb: fields, maps, and perhaps some of the disk.

What it lacks, or what makes no sense in it, is the source's fault.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from relocator.errors import OtherDiskError, UpstreamError
from relocator.source.incoming import Incoming
from relocator.store import runs
from relocator.store.geometry import Geometry
from relocator.store.meta import Base, Meta
from relocator.store.store import Store

T = TypeVar("T")
Runs = list[tuple[int, int]]


@dataclass(frozen=True)
class Answer:
    """A verb's reply: its fields, and the packed maps attached to it.

    What it lacks is the source's fault: UpstreamError. `rest_bytes` of the disk come with it: they
    are still on their way. So are the answers to what was asked at the same time, the `others`.
    """

    fields: dict[str, Any]
    attachments: dict[str, bytes]
    rest_bytes: int = 0
    others: tuple["Asked", ...] = ()
    _rest_at: int = 0
    _incoming: Incoming | None = None

    def __getitem__(self, name: str) -> Any:
        return _known(self.fields, name)

    @property
    def kept(self) -> bool:
        """Whether who gives it has a store, and so the same id whenever it is started."""
        return bool(self.fields.get("kept"))

    def map(self, name: str, bits: int) -> Runs:
        """The set runs of an attached map."""
        return runs.unpack(_known(self.attachments, name), bits)

    def rest(self, at: int, length: int, idle: Callable[[], None]) -> bytes:
        """What comes with it, from `at` on; see `Incoming.read`. Used by one thread."""
        data = b""
        if self._incoming is not None and at + length <= self.rest_bytes:
            data = self._incoming.read(self._rest_at + at, length, idle=idle)
        if len(data) < length:
            raise UpstreamError("the source's answer has fewer bytes than its map of them says")
        return data

    def end(self, idle: Callable[[], None]) -> None:
        """Let the last of it come, and hang up; it is not read any more."""
        if self._incoming is not None:
            self._incoming.end(idle)

    def geometry(self, size_bytes: int) -> Geometry:
        """The source's blocks, of a disk of that size."""
        block_bytes = self["block_bytes"]
        try:
            return Geometry(size_bytes, block_bytes)
        except (TypeError, ValueError) as error:
            raise UpstreamError(f"the source's answer has block_bytes={block_bytes}") from error

    def blocks(self, name: str, geometry: Geometry) -> Runs:
        """Blocks of `geometry` in which an attached map has something, whatever its own block is.

        Where its blocks are the larger ones that is more than it knows of, which is safe for what
        was written; where they are the smaller ones, runs may have a block in common.
        """
        theirs = self.geometry(geometry.size_bytes)
        found = self.map(name, theirs.total_blocks)
        if theirs.block_bytes == geometry.block_bytes:
            return found
        return [geometry.touched(*theirs.extent(first, end)) for first, end in found]


class Asked(NamedTuple):
    """What was asked for together with something else, over a connection of its own."""

    #: waits for the answer; errors as of `Source.call`
    answer: Callable[[], Answer]
    #: what brings it; None: no connection was ready for it
    incoming: Incoming | None = None

    def end(self, idle: Callable[[], None]) -> None:
        """As `Answer.end`, whether it was waited for or not."""
        if self.incoming is not None:
            self.incoming.end(idle)


def base_of(answer: Answer) -> Base:
    """What a copy is taken from, by the source's answer to a verb."""
    return Base(answer["id"], answer["epoch"], answer["seal"])


def check_id(meta: Meta, answer: Answer) -> None:
    """Refuse another disk than the one that `meta` is a copy of.

    One that keeps no store has another id each time it is started, and can't be told from another.

    Raises:
        OtherDiskError: it has another id, and one of the two has a store, so its id is for good.
    """
    base = meta.base
    if base is not None and answer["id"] != base.id and (meta.origin_kept or answer.kept):
        raise OtherDiskError(
            f"the source has become another disk: {answer['id']}, not {base.id}; let the one "
            "that this copy is of be served there, or begin anew with another store"
        )


def stale(
    store: Store, answer: Answer, name: str = "dirty", began: int = 0
) -> list[tuple[int, int]]:
    """What changed at the source since the copy began; everything, if that can't be told.

    `name` is the map that tells, `began` how many epochs began with the answer. With a seal comes
    what `ended` before, too, for a copy that had not heard of it.

    Raises:
        OtherDiskError: as of `check_id`.
    """
    base = store.meta.base
    check_id(store.meta, answer)
    if base is None or base.is_void or base.id != answer["id"]:
        return [(0, store.geometry.total_blocks)]
    begun = answer["epoch"] - base.epoch
    if begun == began:
        return answer.blocks(name, store.geometry)
    if begun == began + 1 and name != "ended" and "ended" in answer.attachments:
        return [*answer.blocks("ended", store.geometry), *answer.blocks(name, store.geometry)]
    return [(0, store.geometry.total_blocks)]


def _known(found: Mapping[str, T], name: str) -> T:
    if name not in found:
        raise UpstreamError(f"the source's answer lacks '{name}'")
    return found[name]
