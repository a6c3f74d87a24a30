"""What a proxy learns of the disk once it is active: which groups are hot, which blocks are in use.

The source stands still by then, so what it says is final. The background copy has begun meanwhile;
it is planned anew when something is known. Learning fails softly: the copy then goes in plain
order.

Skipping free blocks altogether (`skip-free=yes`) makes them present as zeros. That is only done
where a wrong verdict can't lose data: the file systems' journals were readable, and if one is
mounted, the blocks that were written at the source since its maps began are known and counted as in
use.
"""

from typing import TYPE_CHECKING

from relocator.copying import heat
from relocator.errors import UpstreamError
from relocator.filesystem import inuse
from relocator.filesystem.inuse import InUse
from relocator.source.verbs import Source

if TYPE_CHECKING:
    from relocator.running.engine import Engine


def learn(engine: "Engine", source: Source, *, ours: bool) -> None:
    """Learn heat and in-use blocks from the source, and plan anew.

    Raises:
        UpstreamError: the source can't be asked.
    """
    if ours and "hot" in engine.order:
        _learn_heat(engine, source)
    if "in-use" in engine.order or engine.settings.skip_free:
        skip_free = engine.settings.skip_free
        found = source.serve(inuse.survey(engine.store.geometry, journal=skip_free))
        engine.notes = found.notes
        if found.free_blocks:  # else there is nothing to tell apart, and the map would be a burden
            engine.replan(in_use=found.blocks)
        if skip_free:
            _skip_free(engine, source, found, ours=ours)


def _learn_heat(engine: "Engine", source: Source) -> None:
    group_bytes = int(source.call("identify")["group_bytes"])
    try:
        values = heat.unpack(source.export("heat"))
    except ValueError as error:
        raise UpstreamError(f"the source's heat can't be read: {error}") from error
    engine.replan(heat=values, heat_shift=group_bytes.bit_length() - 1)


def _skip_free(engine: "Engine", source: Source, found: InUse, *, ours: bool) -> None:
    """Make the free blocks present as zeros, where that is safe."""
    total = engine.store.geometry.total_blocks
    if found.caveats:
        engine.notes += (f"free blocks are copied after all: {found.caveats[0]}",)
        return
    if found.mounted and not ours:
        reason = "a mounted file system, and the source keeps no record of what was written"
        engine.notes += (f"free blocks are copied after all: {reason}",)
        return
    if ours:
        answer = source.call("identify")
        for name in ("dirty", "diverged"):
            for first, end in answer.map(name, total):
                found.blocks.set(first, end)
    if engine.hydration is not None:
        for first, end in list(found.blocks.clear_runs(0, total)):
            engine.hydration.fill_hole(first, end, skipped=True)
