"""What the source can tell of its disk once it stands still: what was read of late, which groups
are hot, what is in use.

The background copy has begun meanwhile; each hint makes it plan anew. A hint that can't be had
costs nothing but order.

`skip-free=yes` makes free blocks present as zeros instead of copying them. That is only done where
a wrong verdict can't lose data: every file system's journal was read, and if one is mounted, the
blocks written at the source since its maps began are known, and count as in use. What a guest had
allocated before that must be in the bitmaps by now: its journal shows two commits since. And it
rests on nothing but the disk that is copied, whatever else may answer at its address.
"""

from collections.abc import Callable
from contextlib import suppress

from relocator.copying import heat, recent
from relocator.copying.claims import Range, subtract
from relocator.copying.hydration import Hydration
from relocator.copying.plan import Plan
from relocator.errors import OtherDiskError, UpstreamError
from relocator.filesystem import inuse
from relocator.filesystem.inuse import InUse
from relocator.source.answer import Answer
from relocator.source.remote import Source
from relocator.source.upstream import Upstream
from relocator.store.bitmap import Bitmap
from relocator.store.store import Store


def ask(
    source: Source,
    upstream: Upstream,
    store: Store,
    plan: Plan,
    hydration: Hydration,
    *,
    skip_free: bool,
    stopped: Callable[[], bool],
) -> None:
    """Ask the source for its working set, heat and blocks in use, as far as the order wants them.

    Once it is `stopped`, nothing more is stored.

    Raises:
        UpstreamError: the source can't be asked, or (`skip_free`) is another disk.
        StoreError: the store can't keep free blocks as zeros.
    """
    ours = store.meta.base is not None  # a relocator, which knows what was read and written
    if ours and "recent" in plan.keys:
        _ask_recent(source, plan)
    if ours and "hot" in plan.keys:
        _ask_heat(source, plan)
    if "in-use" in plan.keys or skip_free:
        asked = hydration.disowned
        survey = inuse.survey(plan.geometry, journal=skip_free)
        # An order may rest on whatever answers at the address; zeros may not.
        found = upstream.serve(survey) if skip_free else source.serve(survey)
        plan.notes = found.notes
        if found.free_blocks:  # else there is nothing to tell apart, and the map would be a burden
            plan.add(in_use=found.blocks)
        if skip_free and (free := _sure(source, store, plan, found, ours=ours)):
            hydration.skip(free, asked, stopped)


def tell_recent(answer: Answer, plan: Plan) -> None:
    """Let the copy begin with what came with the seal; a source of an older version sends none.

    One that is damaged is none: who asks here is about to take the disk over.
    """
    if (packed := answer.attachments.get("recent")) is not None:
        with suppress(UpstreamError):
            plan.add(recent=recent.unpack(packed))


def _ask_recent(source: Source, plan: Plan) -> None:
    """The whole working set; a source of an older version has no such export."""
    try:
        packed = source.export("recent", recent.MOST_PACKED_BYTES)
    except UpstreamError:
        source.call("identify")  # else it is gone, and all is asked again
        return
    plan.add(recent=recent.unpack(packed))


def _ask_heat(source: Source, plan: Plan) -> None:
    group_bytes = source.call("identify")["group_bytes"]
    shift = heat.shift_of(group_bytes, plan.geometry.size_bytes)
    plan.add(heat=heat.unpack(source.export("heat", heat.MOST_PACKED_BYTES)), heat_shift=shift)


def _sure(source: Source, store: Store, plan: Plan, found: InUse, *, ours: bool) -> list[Range]:
    """The free blocks that may be made present as zeros; notes why others may not.

    Raises:
        OtherDiskError: what was written, another disk tells than was looked at.
    """
    if (blocks := found.blocks) is None:
        return []
    if found.caveats:
        plan.notes += (f"free blocks are copied after all: {found.caveats[0]}",)
        return []
    if found.mounted and not ours:
        reason = "a mounted file system, and the source keeps no record of what was written"
        plan.notes += (f"free blocks are copied after all: {reason}",)
        return []
    unsure = []
    if ours:
        answer = source.call("identify")
        if answer["id"] != store.meta.origin_id:
            raise OtherDiskError("the source has become another disk: it has another id")
        theirs = answer.geometry(plan.geometry.size_bytes)
        written = Bitmap(theirs.total_blocks)
        for name in ("dirty", "diverged"):
            for first, end in answer.map(name, theirs.total_blocks):
                written.set(first, end)
        for first, end in written.set_runs(0, written.bits):
            blocks.set(*plan.geometry.touched(*theirs.extent(first, end)))
        unsure = [one for one in found.mounted if not one.covered(written, theirs)]
    for one in unsure:
        reason = "the source has recorded what is written for less than two commits of its journal"
        plan.notes += (f"free blocks of {one.name} are copied after all: {reason}",)
    volumes = [plan.geometry.touched(*one.volume) for one in unsure]
    return subtract(list(blocks.clear_runs(0, blocks.bits)), volumes)
