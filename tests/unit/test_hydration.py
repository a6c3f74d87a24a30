"""The one hydration path, race by race, with replies that come when the test says."""

import errno
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relocator.copying import holes, hydration
from relocator.copying.claims import subtract
from relocator.errors import RefusedError, StoreError, UpstreamError
from relocator.source.upstream import Upstream
from tests.support.hydration import BLOCK, BLOCKS, DATA, Bench, unheard, waiting
from tests.support.servers import wait_for


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


def test_two_readers_of_a_block_share_one_fetch(bench: Bench) -> None:
    one = bench.in_thread(bench.read, 0, 2)
    waiting(bench, 1)
    two = bench.in_thread(bench.read, 1, 3)
    waiting(bench, 2)
    bench.upstream.reply(1)
    bench.upstream.reply(0)
    assert one.result() == DATA[: 2 * BLOCK]
    assert two.result() == DATA[BLOCK : 3 * BLOCK]
    assert bench.upstream.fetched == [(0, 2 * BLOCK), (2 * BLOCK, BLOCK)]


def test_guest_write_wins_over_late_fetch(bench: Bench) -> None:
    reader = bench.in_thread(bench.read, 0, 3)
    waiting(bench, 1)
    bench.disk.write(memoryview(b"g" * BLOCK), BLOCK, fua=False)  # doesn't wait for the fetch
    bench.upstream.reply()
    assert reader.result() == DATA[:BLOCK] + b"g" * BLOCK + DATA[2 * BLOCK : 3 * BLOCK]
    assert bench.read(1, 2) == b"g" * BLOCK


def test_a_partial_write_merges_with_the_block_it_waited_for(bench: Bench) -> None:
    writer = bench.in_thread(lambda: bench.disk.write(memoryview(b"part"), 10, fua=False))
    waiting(bench, 1)
    assert not bench.store.present[0]
    bench.upstream.reply()
    writer.result()
    assert bench.read(0, 1) == DATA[:10] + b"part" + DATA[14:BLOCK]


def test_a_failed_fetch_reaches_its_own_reader_and_leaves_the_block_absent(bench: Bench) -> None:
    reader = bench.in_thread(bench.read, 4, 5)
    waiting(bench, 1)
    bench.upstream.fail()
    with pytest.raises(UpstreamError, match="made to fail"):
        reader.result()
    again = bench.in_thread(bench.read, 4, 5)
    waiting(bench, 1)
    bench.upstream.reply()
    assert again.result() == DATA[4 * BLOCK : 5 * BLOCK]


@pytest.mark.parametrize("sign", ["it takes long", "it stays out", "all are silent"])
def test_a_reader_takes_its_block_from_a_fetch_that_is_stuck(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    claim = bench.hydration.background.claim(0, 4, 4)
    assert claim is not None
    bench.hydration.send(claim, unheard)
    monkeypatch.setattr(hydration, "STUCK_S", 0.1 if sign == "it takes long" else 1000.0)
    if sign == "it stays out":
        bench.upstream.waiting[0].stuck()
    bench.upstream.is_background_silent = sign == "all are silent"
    reader = bench.in_thread(bench.read, 2, 3)
    waiting(bench, 2)
    assert bench.upstream.fetched == [(0, 4 * BLOCK), (2 * BLOCK, BLOCK)]
    bench.upstream.reply(1)
    assert reader.result() == DATA[2 * BLOCK : 3 * BLOCK]
    bench.disk.write(memoryview(b"g" * BLOCK), 2 * BLOCK, fua=False)
    bench.upstream.reply()
    assert bench.read(0, 4) == DATA[: 2 * BLOCK] + b"g" * BLOCK + DATA[3 * BLOCK : 4 * BLOCK]


def test_all_is_left_but_what_failed_by_itself_or_stays_out(bench: Bench) -> None:
    """Rounds of a copy ahead go on then; a move waits until each block has been tried by itself."""
    hydration, upstream = bench.hydration, bench.upstream
    background = hydration.background

    def left() -> tuple[bool, bool]:
        return background.left_to_refused, background.left_to_unreadable

    def fetch() -> None:
        while (claim := background.claim(0, BLOCKS, BLOCKS)) is not None:
            hydration.send(claim, unheard)

    def refuse() -> None:
        request = upstream.waiting.pop(0)
        request.error = RefusedError("a bad sector")
        request.done(request)

    fetch()
    assert left() == (False, False)
    refuse()
    assert left() == (True, False)  # all at once: most of it can perhaps be read
    for _ in range(BLOCKS - 1):  # the halves, and theirs
        for _ in range(2):
            claim = background.claim_again()
            assert claim is not None
            hydration.send(claim, unheard)
            assert left() == (True, False)
            refuse()
    assert left() == (True, True)
    bench.store.drop([])
    bench.disk.write(memoryview(b"w" * BLOCK), 0, fua=False)
    refusal = background.refusal
    assert refusal is not None and f"{(BLOCKS - 1) * BLOCK} bytes" in refusal


def test_what_stays_out_keeps_no_round(bench: Bench) -> None:
    claim = bench.hydration.background.claim(0, BLOCKS, BLOCKS)
    assert claim is not None
    bench.hydration.send(claim, unheard)
    assert not bench.hydration.background.left_to_refused
    bench.upstream.waiting[0].stuck()
    assert bench.hydration.background.left_to_refused
    bench.upstream.reply()
    assert bench.store.all_present


def test_nothing_is_taken_from_a_fetch_that_has_just_failed(bench: Bench) -> None:
    """Whoever waited for it looked at it a moment before: nobody would ever let go of it."""
    claim = bench.hydration.background.claim(0, 4, 4)
    assert claim is not None
    bench.hydration.send(claim, unheard)
    bench.upstream.fail()
    assert not bench.hydration._take(claim, 2, 3)
    again = bench.hydration.background.claim(0, 4, 4)
    assert again is not None and (again.first, again.end) == (0, 4)


def test_a_reader_survives_the_failure_of_a_background_fetch(bench: Bench) -> None:
    claim = bench.hydration.background.claim(0, 4, 4)
    assert claim is not None
    bench.hydration.send(claim, unheard)
    reader = bench.in_thread(bench.read, 2, 3)
    bench.upstream.fail()
    waiting(bench, 1)  # it asks again, on its own account, for its own block
    assert bench.upstream.fetched[-1] == (2 * BLOCK, BLOCK)
    bench.upstream.reply()
    assert reader.result() == DATA[2 * BLOCK : 3 * BLOCK]


def test_the_background_copy_skips_what_is_present_or_owned(bench: Bench) -> None:
    bench.disk.zero(0, 2 * BLOCK, punch=True, fua=False)
    bench.in_thread(bench.read, 3, 5)
    waiting(bench, 1)
    claims = []
    at = 0
    while (claim := bench.hydration.background.claim(at, BLOCKS, 4)) is not None:
        claims.append((claim.first, claim.end))
        at = claim.end
    assert claims == [(2, 3), (5, 9), (9, 13), (13, 16)]


def test_a_full_store_keeps_nothing_and_reads_go_through(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_data: object, _offset: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(bench.store.image, "write", full)
    reader = bench.in_thread(bench.read, 0, 2)
    waiting(bench, 1)
    bench.upstream.reply()
    assert reader.result() == DATA[: 2 * BLOCK]
    with pytest.raises(StoreError) as caught:
        bench.disk.write(memoryview(b"w" * BLOCK), 0, fua=False)
    assert caught.value.errno == errno.ENOSPC
    assert bench.store.present_blocks == 0


def test_a_write_that_fails_leaves_its_blocks_to_the_source(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_data: object, _offset: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as broken:
        broken.setattr(bench.store.image, "write", full)
        with pytest.raises(StoreError):
            bench.disk.write(memoryview(b"w" * BLOCK), BLOCK, fua=False)
    reader = bench.in_thread(bench.read, 1, 2)
    waiting(bench, 1)
    bench.upstream.reply()
    assert reader.result() == DATA[BLOCK : 2 * BLOCK]


def test_the_last_block_completes_by_whatever_way_it_comes(bench: Bench) -> None:
    bench.disk.zero(0, (BLOCKS - 2) * BLOCK, punch=False, fua=False)
    assert bench.hydration.fill_hole(BLOCKS - 2, BLOCKS - 1, bench.hydration.disowned)
    assert not bench.completed.is_set()
    bench.disk.write(memoryview(b"z" * BLOCK), (BLOCKS - 1) * BLOCK, fua=True)
    assert bench.completed.is_set()
    assert bench.upstream.fetched == []


def test_a_reader_whose_fetch_fails_takes_what_a_write_has_brought_meanwhile(bench: Bench) -> None:
    reader = bench.in_thread(bench.read, 6, 7)
    waiting(bench, 1)
    bench.disk.write(memoryview(b"n" * BLOCK), 6 * BLOCK, fua=False)
    bench.upstream.fail()
    assert reader.result() == b"n" * BLOCK


def test_who_waits_for_a_silent_source_takes_what_a_write_has_brought_meanwhile(
    bench: Bench,
) -> None:
    own = bench.in_thread(bench.read, 6, 7)
    waiting(bench, 1)
    write = lambda: bench.disk.write(memoryview(b"part"), 6 * BLOCK, fua=False)  # noqa: E731
    shared = bench.in_thread(write)  # needs the rest of the block
    bench.disk.write(memoryview(b"n" * BLOCK), 6 * BLOCK, fua=False)
    assert own.result() in (b"n" * BLOCK, b"part" + b"n" * (BLOCK - 4))
    shared.result()
    assert bench.read(6, 7) in (b"n" * BLOCK, b"part" + b"n" * (BLOCK - 4))
    bench.upstream.reply()
    assert bench.read(6, 7) in (b"n" * BLOCK, b"part" + b"n" * (BLOCK - 4))


def test_trim_brings_no_old_data_back(bench: Bench) -> None:
    bench.disk.trim(BLOCK // 2, 3 * BLOCK, fua=False)
    assert bench.read(1, 3) == bytes(2 * BLOCK)
    assert not bench.store.present[0] and not bench.store.present[3]


small = st.integers(0, 30)
spans = st.lists(st.tuples(small, small).map(lambda ends: tuple(sorted(ends))), max_size=5)


@given(spans, spans)
def test_subtract_is_the_difference_of_sets(ranges: list, holes: list) -> None:
    left = [at for first, end in subtract(ranges, holes) for at in range(first, end)]
    gone = {at for first, end in holes for at in range(first, end)}
    assert left == [at for first, end in ranges for at in range(first, end) if at not in gone]


HOLE = (4 * BLOCK, 3)
DATA_RUN = (4 * BLOCK, 0)


def test_what_was_a_hole_before_answers_were_disowned_is_asked_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holes are asked for ahead of the copy; the source may be written before it gets there."""
    monkeypatch.setattr(holes, "STEP_BYTES", 4 * BLOCK)
    found = holes.Holes(bench.store, cast(Upstream, bench.upstream), bench.hydration)
    filling = bench.in_thread(found.fill, 0, 4)
    waiting(bench, 3)
    for _ in range(3):
        bench.upstream.reply_runs(HOLE)
    filling.result()
    assert bench.store.present.all(0, 4)
    bench.hydration.disown_fetches()
    filling = bench.in_thread(found.fill, 4, 8)
    waiting(bench, 2)  # the next step ahead, and this one again
    asked = [request.offset for request in bench.upstream.waiting]
    bench.upstream.reply_runs(DATA_RUN, index=asked.index(4 * BLOCK))
    filling.result()
    assert not bench.store.present.any(4, 16)
    reader = bench.in_thread(bench.read, 4, 8)
    waiting(bench, 2)
    bench.upstream.reply(-1)
    assert reader.result() == DATA[4 * BLOCK : 8 * BLOCK]


def test_a_step_is_asked_about_again_once_much_of_it_became_stale(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source's guest may have trimmed it."""
    monkeypatch.setattr(holes, "STEP_BYTES", 4 * BLOCK)
    monkeypatch.setattr(holes, "AGAIN_BYTES", 3 * BLOCK)
    found = holes.Holes(bench.store, cast(Upstream, bench.upstream), bench.hydration)

    def fill() -> None:
        filling = bench.in_thread(found.fill, 0, 4)
        wait_for(lambda: not filling.is_alive() or bench.upstream.waiting, "a question")
        for _ in range(len(bench.upstream.waiting)):
            bench.upstream.reply_runs(HOLE)
        filling.result()

    fill()
    for stale, asked in ((2, False), (3, True)):
        bench.hydration.disown_fetches()
        bench.store.drop([(0, stale)])
        fill()
        assert bench.store.present.all(0, 4) == asked


def test_holes_that_a_silent_source_owes_are_not_waited_for_once_all_is_here(bench: Bench) -> None:
    upstream, over = cast(Upstream, bench.upstream), threading.Event()
    found = holes.Holes(bench.store, upstream, bench.hydration, over=over.is_set)
    filling = bench.in_thread(found.fill, 0, 4)
    waiting(bench, 1)
    over.set()
    filling.result()
    assert not bench.store.present.any(0, 4)


def test_a_hole_is_not_filled_once_answers_are_disowned(bench: Bench) -> None:
    asked = bench.hydration.disowned
    bench.hydration.disown_fetches()
    assert not bench.hydration.fill_hole(0, 4, asked)
    assert not bench.store.present.any(0, 4)


KNOWN = memoryview(random.Random(5).randbytes(4 * BLOCK))


def test_known_content_fills_what_nobody_owns(bench: Bench) -> None:
    reader = bench.in_thread(bench.read, 1, 2)
    waiting(bench, 1)
    assert bench.hydration.fill(0, 4, bench.hydration.disowned, KNOWN)
    assert [bench.store.present[at] for at in range(4)] == [True, False, True, True]
    assert bench.hydration.seeded_bytes == 3 * BLOCK
    bench.upstream.reply(-1)
    assert reader.result() == DATA[BLOCK : 2 * BLOCK]
    assert bench.read(2, 4) == KNOWN[2 * BLOCK :]


def test_known_content_never_replaces_what_was_written(bench: Bench) -> None:
    bench.disk.write(memoryview(b"w" * 2 * BLOCK), BLOCK, fua=False)
    assert bench.hydration.fill(0, 4, bench.hydration.disowned, KNOWN)
    assert bench.read(0, 4) == bytes(KNOWN[:BLOCK]) + b"w" * 2 * BLOCK + bytes(KNOWN[3 * BLOCK :])


def test_what_was_known_before_answers_were_disowned_fills_nothing(bench: Bench) -> None:
    asked = bench.hydration.disowned
    bench.hydration.disown_fetches()
    assert not bench.hydration.fill(0, 4, asked, KNOWN)
    assert not bench.store.present.any(0, 4)
