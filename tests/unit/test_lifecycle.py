"""The life of a disk: transitions are one step, durable first, and everything follows the state."""

import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relocator.errors import StateError, StoreError
from relocator.running.lifecycle import Lifecycle
from relocator.running.parts import COMMIT, HANDOVER, Faults
from relocator.running.states import State
from relocator.store import meta as metadata
from relocator.store.meta import Meta, Takeover, new_token
from relocator.store.opening import open_store
from relocator.store.store import Store

SIZE_BYTES = 64 * 4096


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store whose disk is all here."""
    fresh = Meta(new_token(), SIZE_BYTES, 4096, source=None, complete=True)
    found = open_store(tmp_path / "store", fresh)
    yield found
    found.abandon()


def on_disk(store: Store) -> dict[str, Any]:
    assert store.directory is not None
    found: dict[str, Any] = json.loads((store.directory / "meta.json").read_text())
    return found


def life_of(store: Store) -> Lifecycle:
    """The life of a disk at which writes do not wait for long."""
    return Lifecycle(store, patience_s=0.02)


def writable(lifecycle: Lifecycle) -> bool:
    try:
        turn = lifecycle.gate.enter()
    except StateError:
        return False
    lifecycle.gate.leave(turn)
    return True


@contextmanager
def meta_that_cannot_be_written(store: Store) -> Iterator[None]:
    assert store.directory is not None
    obstacle = store.directory / "meta.json.new"
    obstacle.mkdir()
    try:
        yield
    finally:
        obstacle.rmdir()


@contextmanager
def slow_updates(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Updates of the metadata don't begin before what is given has been called."""
    go_on = threading.Event()
    update = store.update

    def slow(**changes: Any) -> None:
        assert go_on.wait(10)
        update(**changes)

    monkeypatch.setattr(store, "update", slow)
    yield go_on.set
    go_on.set()


@pytest.mark.parametrize(
    ("meta", "state", "writes", "derived"),
    [
        ({"complete": False, "standby": True}, "standby", False, (True, False, "proxy")),
        (
            {"complete": False, "standby": True, "takeover": Takeover("t", withdrawn=True)},
            "standby",
            False,
            (True, False, "proxy"),
        ),
        ({"complete": False}, "active", True, (False, False, "proxy")),
        ({"complete": True}, "complete", True, (False, True, "target")),
        ({"complete": True, "seal": "s"}, "sealed", False, (False, True, "target")),
        ({"complete": False, "seal": "s"}, "relaying", False, (False, False, "proxy")),
    ],
)
def test_everything_follows_from_the_state(
    store: Store,
    meta: dict[str, Any],
    state: str,
    writes: bool,
    derived: tuple[bool, bool, str],
) -> None:
    """`derived`: whether reads pass through, whether all is here, the role."""
    store.meta = replace(store.meta, **meta)
    lifecycle = life_of(store)
    assert lifecycle.state == state
    assert (lifecycle.pass_through, lifecycle.all_here, lifecycle.role) == derived
    assert writable(lifecycle) is writes
    assert lifecycle.finished.is_set() is lifecycle.all_here


def test_updates_from_many_threads_are_all_kept(store: Store) -> None:
    fields = ("epoch", "seal", "origin_id", "origin_samples")

    def change(field: str) -> None:
        for number in range(1, 41):
            store.update(**{field: number if field == "epoch" else f"{field} {number}"})

    with ThreadPoolExecutor(len(fields)) as pool:
        list(pool.map(change, fields))
    newest = {"epoch": 40, **{field: f"{field} 40" for field in fields[1:]}}
    assert newest.items() <= on_disk(store).items()
    assert newest.items() <= vars(store.meta).items()


def test_metadata_that_cannot_be_written_are_not_believed_either(store: Store) -> None:
    before = store.meta
    with meta_that_cannot_be_written(store), pytest.raises(StoreError, match=r"meta\.json"):
        store.update(epoch=7)
    assert store.meta == before
    store.update(moved=False)
    assert on_disk(store)["epoch"] == before.epoch


def test_a_seal_that_is_not_durable_is_none(store: Store) -> None:
    lifecycle = life_of(store)
    with meta_that_cannot_be_written(store), pytest.raises(StoreError, match=r"meta\.json"):
        lifecycle.seal()
    assert lifecycle.state is State.COMPLETE
    assert writable(lifecycle)
    lifecycle.seal()
    assert on_disk(store)["seal"] == store.meta.seal is not None
    assert not writable(lifecycle)


def test_an_epoch_that_is_not_durable_leaves_the_dirty_map(store: Store) -> None:
    lifecycle = life_of(store)
    store.mark_dirty(3, 5)
    with meta_that_cannot_be_written(store), pytest.raises(StoreError, match=r"meta\.json"):
        lifecycle.begin_epoch()
    assert list(store.dirty.set_runs(0, 64)) == [(3, 5)]
    lifecycle.begin_epoch()
    assert store.dirty_blocks == store.dirty.count() == 0


def test_unseal_waits_for_word_that_the_disk_has_moved(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle = life_of(store)
    lifecycle.seal()
    with ThreadPoolExecutor(2) as pool, slow_updates(store, monkeypatch) as go_on:
        moved = pool.submit(lifecycle.note_moved)
        unsealed = pool.submit(lifecycle.unseal)
        go_on()
        # Whichever came first, the other one was refused: never are both true.
        outcomes = [moved.exception(10), unsealed.exception(10)]
    assert sum(isinstance(outcome, StateError) for outcome in outcomes) == 1
    assert store.meta.moved is not (store.meta.seal is None)
    assert writable(lifecycle) is (store.meta.seal is None)


def test_a_disk_that_has_moved_stays_sealed(store: Store) -> None:
    lifecycle = life_of(store)
    lifecycle.seal()
    lifecycle.note_moved()
    with pytest.raises(StateError, match="a proxy is active"):
        lifecycle.unseal()
    assert not writable(lifecycle)


def test_word_that_an_unsealed_disk_has_moved_is_refused(store: Store) -> None:
    with pytest.raises(StateError, match="'moved' is refused in state 'complete'"):
        life_of(store).note_moved()
    assert not store.meta.moved


def test_a_commit_that_succeeds_does_not_hide_what_the_handover_has_to_say() -> None:
    faults = Faults()
    faults.report(HANDOVER, "the source can't be told")
    faults.report(COMMIT, "no room")
    assert faults.worst == "no room"
    faults.report(COMMIT, None)
    assert faults.worst == "the source can't be told"
    faults.report(HANDOVER, None)
    assert faults.worst is None


def test_a_meta_file_is_whole_at_every_instant(store: Store) -> None:
    """Readers in other processes (graduation) open it by name while it is being replaced."""
    assert store.directory is not None
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            store.update(origin_id=new_token())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(change) for _ in range(2)]
            try:
                for _ in range(100):
                    assert metadata.read(store.directory) is not None
            finally:
                stop.set()
            for job in jobs:
                job.result(10)
    finally:
        sys.setswitchinterval(interval)


def test_an_epoch_begins_while_a_write_is_in_progress_and_outlasts_it(store: Store) -> None:
    lifecycle = life_of(store)
    turn = lifecycle.gate.enter()
    store.mark_dirty(3, 5)
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(lifecycle.begin_epoch)
        while store.dirty_blocks:
            pass
        assert writable(lifecycle)  # another one does not wait
        assert not begun.done()  # the answer does
        lifecycle.gate.leave(turn)
        epoch, ended = begun.result(10)
    assert ended is not None
    assert (epoch, list(ended.set_runs(0, 64))) == (store.meta.epoch, [(3, 5)])


def test_an_epoch_in_which_nothing_was_written_goes_on(store: Store) -> None:
    lifecycle, epoch = life_of(store), store.meta.epoch
    assert lifecycle.begin_epoch(epoch)[0] == store.meta.epoch == epoch
    store.mark_dirty(0, 1)
    assert lifecycle.begin_epoch(epoch)[0] == store.meta.epoch == epoch + 1
    lifecycle.seal()
    with pytest.raises(StateError, match="'epoch' is refused: the disk is sealed"):
        lifecycle.begin_epoch(epoch + 1)


def test_a_sealed_disk_keeps_what_it_answers_its_seal_with(store: Store) -> None:
    lifecycle, epoch = life_of(store), store.meta.epoch
    store.mark_dirty(3, 5)
    lifecycle.seal()
    assert lifecycle.begin_epoch() == (epoch, None)
    assert (store.meta.epoch, list(store.dirty.set_runs(0, 64))) == (epoch, [(3, 5)])
    lifecycle.unseal()
    assert lifecycle.begin_epoch()[0] == epoch + 1


def test_a_copy_that_follows_the_epochs_misses_no_write(store: Store) -> None:
    """What each ended epoch names is copied while writes go on; after the last nothing differs."""
    lifecycle, copy, block = life_of(store), bytearray(SIZE_BYTES), 4096
    stop = threading.Event()

    def write(seed: int) -> None:
        choose = random.Random(seed)
        while not stop.is_set():
            at, data = choose.randrange(seed, 64, 4), choose.randbytes(block)
            turn = lifecycle.gate.enter()
            store.mark_dirty(at, at + 1)
            time.sleep(choose.random() / 1000)
            store.image.write(data, at * block)
            lifecycle.gate.leave(turn)

    def follow() -> None:
        ended = lifecycle.begin_epoch()[1]
        assert ended is not None
        for first, end in ended.set_runs(0, 64):
            piece = memoryview(copy)[first * block : end * block]
            store.image.read_into(piece, first * block)

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, seed) for seed in range(4)]
        try:
            for _ in range(100):
                follow()
        finally:
            stop.set()
        for writer in writers:
            writer.result(10)
    follow()
    assert store.dirty_blocks == 0
    assert store.image.path.read_bytes() == copy
