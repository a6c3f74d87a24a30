"""What a disk is known by."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relocator.errors import OtherDiskError, OutdatedError
from relocator.running.lifecycle import Lifecycle
from relocator.running.states import State
from relocator.source import identity
from relocator.source.answer import Answer
from relocator.source.endpoint import Endpoint
from relocator.source.identity import Guard, agree, check_fetched, places, takes_back, unsealed
from relocator.store.meta import Base, Meta, Takeover
from relocator.store.opening import open_store
from relocator.store.store import Store

SIZE_BYTES = 1 << 20
SOURCE, FIRST, SECOND = "a" * 32, "1" * 32, "2" * 32


@pytest.mark.parametrize("size_bytes", [1, 4096, 5000, 100_000, 1 << 20, (1 << 20) + 1, 1 << 40])
def test_samples_lie_within_the_disk_and_are_few(size_bytes: int) -> None:
    found = places(size_bytes)
    assert found[0].offset == 0
    assert found[-1].offset + found[-1].length == size_bytes
    assert all(one.length > 0 and one.offset + one.length <= size_bytes for one in found)
    assert len(found) <= 20


def test_a_place_that_could_not_be_read_says_nothing() -> None:
    assert agree("a b c", "a - c")
    assert agree("a - c", "a b c")
    assert not agree("a - c", "a b d")
    assert not agree("a b c", "a b")


def test_a_disk_of_which_nothing_was_read_both_times_is_not_known_again() -> None:
    assert not agree("- -", "- -")
    assert not agree("a -", "- b")


def test_a_disk_of_another_size_is_refused_before_anything_is_known_of_it(store: Store) -> None:
    store.update(origin_seal=None, origin_id=None, base=None, standby=True)
    with pytest.raises(OtherDiskError, match="another disk: 4096 bytes, not 1048576"):
        Guard(store, Endpoint("nbd://x")).check(Handle(4096))


class Handle:
    """A connection to a disk of that size."""

    def __init__(self, size_bytes: int = SIZE_BYTES) -> None:
        self._size_bytes = size_bytes

    def get_size(self) -> int:
        return self._size_bytes


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A disk that was taken over by the first seal, and has a block."""
    known = Base(SOURCE, 3, FIRST)
    keys: dict[str, Any] = {"base": known, "origin_id": SOURCE, "origin_seal": FIRST}
    fresh = Meta("b" * 32, SIZE_BYTES, 4096, source="nbd://x", complete=False, **keys)
    found = open_store(tmp_path / "store", fresh)
    with found.lock:
        found.mark_present_locked(0, 1)
    yield found
    found.abandon()


def says(
    monkeypatch: pytest.MonkeyPatch, seal: str, meanwhile: Callable[[], None] = lambda: None
) -> list[str]:
    """The source is sealed by `seal`, and `meanwhile` happens until its first answer is here."""
    answers: list[str] = []

    def identify(_source: Any) -> Answer:
        if not answers:
            meanwhile()
        answers.append(seal)
        known = {"id": SOURCE, "epoch": 4, "seal": seal, "base": None, "outdated": False}
        return Answer(known, {})

    monkeypatch.setattr(identity.Source, "identify", identify)
    return answers


def taken_again(lifecycle: Lifecycle) -> None:
    """Given back, and taken over by the second seal."""
    lifecycle.withdraw()
    lifecycle.note_given_back()
    lifecycle.begin_activation(Takeover(SECOND))
    base = Base(SOURCE, 4, SECOND)
    lifecycle.activate(base=base, origin_id=SOURCE, origin_seal=SECOND)


def test_an_answer_that_took_long_is_not_held_against_an_earlier_seal(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle = Lifecycle(store)
    answers = says(monkeypatch, SECOND, lambda: taken_again(lifecycle))
    Guard(store, Endpoint("nbd://x"), lifecycle.note_outdated).check(Handle())
    assert len(answers) == 2
    assert (lifecycle.state, store.meta.outdated) == (State.ACTIVE, False)


def test_a_round_that_is_noted_meanwhile_lets_no_other_disk_in(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.update(base=Base(SOURCE, 3), standby=True, origin_seal=None)

    def identify(_source: Any) -> Answer:
        store.update(base=Base(SOURCE, 4))
        return Answer({"id": "c" * 32, "epoch": 1, "seal": None, "base": None}, {})

    monkeypatch.setattr(identity.Source, "identify", identify)
    with pytest.raises(OtherDiskError, match="started again without a store"):
        Guard(store, Endpoint("nbd://x")).check(Handle())


def test_who_answers_is_looked_at_again_where_the_source_was_begun_anew_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.update(base=Base(SOURCE, 3), standby=True, origin_seal=None)
    answers: list[str] = []

    def identify(_source: Any) -> Answer:
        answers.append(SOURCE)
        if len(answers) == 1:
            store.update(base=Base("c" * 32, 0))
        return Answer({"id": SOURCE, "epoch": 3, "seal": None, "base": None}, {})

    monkeypatch.setattr(identity.Source, "identify", identify)
    with pytest.raises(OtherDiskError, match="started again without a store"):
        Guard(store, Endpoint("nbd://x")).check(Handle())
    assert len(answers) == 2


def test_a_source_that_has_undone_the_seal_in_force_makes_the_disk_outdated(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle = Lifecycle(store)
    says(monkeypatch, SECOND)
    with pytest.raises(OutdatedError):
        Guard(store, Endpoint("nbd://x"), lifecycle.note_outdated).check(Handle())
    assert (lifecycle.state, store.meta.outdated) == (State.OUTDATED, True)


@pytest.mark.parametrize(
    ("of_seal", "ours", "is_so"),
    [(None, None, True), (SECOND, SECOND, True), (SECOND, None, False), (SECOND, FIRST, False)],
)
def test_a_source_takes_the_disk_back_by_a_seal_of_now(
    store: Store, of_seal: str | None, ours: str | None, is_so: bool
) -> None:
    """It was given to the source, by that seal, and came back from there before."""
    store.update(seal=ours)
    base = {"id": store.meta.id, "epoch": 1, "seal": of_seal}
    answer = Answer({"id": SOURCE, "epoch": 5, "seal": None, "base": base}, {})
    assert takes_back(store.meta, answer) is is_so
    assert unsealed(store.meta, answer) is not is_so


def test_a_source_that_took_the_disk_by_a_seal_undone_by_force_has_it_still(store: Store) -> None:
    store.update(void_seals=(SECOND,))
    base = {"id": store.meta.id, "epoch": 1, "seal": SECOND}
    assert takes_back(store.meta, Answer({"id": SOURCE, "base": base}, {}))


def test_what_can_not_be_read_here_proves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_buffer: Any, _offset: int) -> None:
        raise OSError(5, "a bad sector")

    monkeypatch.setattr(store.image, "read_into", fails)
    monkeypatch.setattr(identity, "read_each", lambda _handle, places: [b"other"] * len(places))
    check_fetched(store, Handle())


def test_word_of_a_seal_that_is_in_force_no_more_changes_nothing(store: Store) -> None:
    lifecycle = Lifecycle(store)
    taken_again(lifecycle)
    lifecycle.note_outdated(FIRST)
    assert (lifecycle.state, store.meta.outdated) == (State.ACTIVE, False)
    lifecycle.note_outdated(SECOND)
    assert (lifecycle.state, store.meta.outdated) == (State.OUTDATED, True)


def test_why_a_disk_is_outdated_is_told_before_it_is(store: Store) -> None:
    lifecycle = Lifecycle(store)
    told: list[State] = []
    lifecycle.note_outdated(FIRST, lambda: told.append(lifecycle.state))
    lifecycle.note_outdated(FIRST, lambda: told.append(lifecycle.state))
    assert (told, lifecycle.state) == ([State.ACTIVE], State.OUTDATED)
