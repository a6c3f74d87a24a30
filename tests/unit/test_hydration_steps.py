"""However long a run is, a guest waits for a step of it at most; of a fragmented map, too."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from relocator.copying import hydration
from relocator.copying.holes import Holes
from relocator.running import disk
from relocator.source.upstream import Upstream
from relocator.store import image
from tests.support.hydration import BLOCK, BLOCKS, DATA, Bench
from tests.support.servers import wait_for


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def slow_zeros(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> "SlowZeros":
    """The image is on what can't punch, and slow: zeros are written when the test says."""
    return SlowZeros(bench, monkeypatch)


class SlowZeros:
    """Holds writes of zeros back; four blocks are a step."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting, self.go_on = threading.Event(), threading.Event()
        self._write = bench.store.image.write
        monkeypatch.setattr(image, "fallocate", lambda *_: False)
        monkeypatch.setattr(hydration, "_WRITE_STEP_BYTES", 4 * BLOCK)
        monkeypatch.setattr(bench.hydration, "_zero_step_bytes", 4 * BLOCK)
        monkeypatch.setattr(bench.store.image, "write", self.write)

    def write(self, data: Any, offset: int) -> None:
        if not any(data):
            self.waiting.set()
            assert self.go_on.wait(10)
        self._write(data, offset)


def test_a_write_does_not_wait_for_zeros_to_be_written_elsewhere(
    bench: Bench, slow_zeros: SlowZeros
) -> None:
    filling = bench.in_thread(bench.hydration.fill_hole, 0, BLOCKS, bench.hydration.disowned)
    assert slow_zeros.waiting.wait(10)
    bench.in_thread(
        lambda: bench.disk.write(memoryview(b"w" * BLOCK), 9 * BLOCK, fua=False)
    ).result()
    slow_zeros.go_on.set()
    assert filling.result()
    assert bench.read(0, BLOCKS) == bytes(9 * BLOCK) + b"w" * BLOCK + bytes(6 * BLOCK)
    assert bench.hydration.hole_bytes == (BLOCKS - 1) * BLOCK and bench.completed.is_set()


def test_a_long_hole_is_left_once_answers_are_disowned(bench: Bench, slow_zeros: SlowZeros) -> None:
    filling = bench.in_thread(bench.hydration.fill_hole, 0, BLOCKS, bench.hydration.disowned)
    assert slow_zeros.waiting.wait(10)
    disowning = bench.in_thread(bench.hydration.disown_fetches)
    wait_for(lambda: bench.hydration.disowned, "the word")
    slow_zeros.go_on.set()
    disowning.result()
    assert not filling.result()
    assert bench.store.present.all(0, 4) and not bench.store.present.any(4, BLOCKS)


def test_a_hole_with_many_runs_is_claimed_a_part_at_a_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hydration, "_MOST_RUNS", 3)
    for at in range(0, BLOCKS, 2):
        bench.disk.write(memoryview(b"w" * BLOCK), at * BLOCK, fua=False)
    most = 0

    def zero(offset: int, length: int, *, punch: bool) -> bool:
        nonlocal most
        most = max(most, len(list(bench.hydration._claims)))
        return real(offset, length, punch=punch)

    real = bench.store.image.zero
    monkeypatch.setattr(bench.store.image, "zero", zero)
    assert bench.hydration.fill_hole(0, BLOCKS, bench.hydration.disowned)
    assert most == 3
    assert bench.read(0, BLOCKS) == (b"w" * BLOCK + bytes(BLOCK)) * (BLOCKS // 2)


def test_a_write_takes_no_more_from_a_fetch_than_that_has(bench: Bench) -> None:
    """Many fetches in flight and a fragmented map: each would else note every run of the write."""
    bench.disk.write(memoryview(b"w" * BLOCK), 5 * BLOCK, fua=False)
    claims = [bench.hydration.background.claim(at, at + 4, 4) for at in (0, 4, 8)]
    bench.disk.zero(BLOCK, 10 * BLOCK, punch=True, fua=False)
    assert [claim and claim.lost for claim in claims] == [[(1, 4)], [(4, 5)], [(8, 11)]]


def test_a_guest_that_zeroes_its_disk_claims_it_a_step_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a fragmented map would else be held for seconds."""
    bench, lengths = Bench(tmp_path, 1 << 30), []
    real = bench.store.image.zero

    def zero(offset: int, length: int, *, punch: bool) -> bool:
        lengths.append(length)
        return real(offset, length, punch=punch)

    monkeypatch.setattr(bench.store.image, "zero", zero)
    bench.disk.zero(0, 1 << 30, punch=True, fua=False)
    bench.store.close()
    assert sum(lengths) == 1 << 30 and max(lengths) <= 32 << 20


def test_what_is_told_of_a_fragmented_image_is_bounded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_MOST_RUNS", 5)
    bench.disk.zero(0, len(DATA), punch=True, fua=False)
    for at in range(0, BLOCKS, 2):
        bench.disk.write(memoryview(b"w" * BLOCK), at * BLOCK, fua=False)
    bench.store.present.clear(BLOCKS - 1, BLOCKS)  # as of a copy that is not complete
    monkeypatch.setattr(bench.disk._lifecycle, "all_here", False)
    assert bench.disk.runs(0, len(DATA)) == [(at * BLOCK, BLOCK, not at % 2) for at in range(5)]


def test_holes_that_blocks_fill_between_two_looks_are_not_asked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    holes = Holes(bench.store, cast(Upstream, bench.upstream), bench.hydration)
    looks = iter([True, False, True, True])  # a round drops some after the first, some come back
    monkeypatch.setattr(holes, "_is_filled", lambda _index: next(looks))
    holes.fill(0, BLOCKS)
    assert not list(looks)
