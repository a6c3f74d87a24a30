"""Stores whose files were damaged: recovered or refused, but never believed.

Byte by byte, at any place and in several at once, after an orderly end, after a kill and after a
power failure. What no checksum can tell is left out: bits of the live map after a kill (they are
the memory of that process), and a page of the durable map that was written after the last change of
meta.json (it can't be told from a torn write).
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relocator.errors import RelocatorError
from relocator.store.maps import PAGE_BYTES
from relocator.store.meta import Base, Meta
from relocator.store.opening import open_store
from relocator.store.store import Store
from tests.fuzz import temporary

SIZE_BYTES = 1 << 20
#: where a flush costs nothing, if there is such a place
_SHM = Path("/dev/shm")
_WHERE = _SHM if os.access(_SHM, os.W_OK) else None
HOW = ("closed", "killed", "powerless")
FILES = ("meta.json", "map.durable", "map.live")

Found = tuple[Meta, list[list[tuple[int, int]]]]


def fresh() -> Meta:
    return Meta("a" * 32, SIZE_BYTES, 4096, source="fake:", complete=False)


def content(store: Store) -> Found:
    """All that a store says of its disk."""
    total = store.geometry.total_blocks
    planes = [list(one.set_runs(0, total)) for one in (store.present, store.dirty, store.diverged)]
    return replace(store.meta, clean=False, map_versions=0), planes


@dataclass(frozen=True)
class Case:
    """A store as it was left, and what it may be when it is opened.

    After a kill that is also what it would be after a power failure: without its live map.
    """

    directory: Path
    wanted: list[Found]


def work(store: Store, first: int) -> None:
    """Blocks come, others are written, others are dropped."""
    with store.lock:
        store.mark_present_locked(first, first + 20)
    store.mark_dirty(first + 5, first + 8)
    store.drop([(first + 10, first + 12)])
    store.commit()


@contextmanager
def another_boot() -> Iterator[None]:
    with mock.patch("relocator.store.store.boot_id", lambda: "another boot".ljust(36)):
        yield


@contextmanager
def opened(directory: Path, how: str) -> Iterator[Store]:
    """The store at `directory` as the next process finds it."""
    with another_boot() if how == "powerless" else mock.MagicMock():
        store = open_store(directory, fresh())
    try:
        yield store
    finally:
        store.abandon()


@cache
def case(how: str) -> Case:
    directory = temporary.directory(_WHERE) / how
    store = open_store(directory, fresh())
    for first in (0, 40, 80):  # each map's page is in both its slots
        work(store, first)
    store.update(base=Base("b" * 32, 3, "c" * 32), epoch=7)
    if how == "killed":  # what only the live map knows
        with store.lock:
            store.mark_present_locked(200, 230)
    if how == "closed":
        store.close()
    else:
        store.abandon()
    wanted = []
    for boots in dict.fromkeys([how, "powerless" if how == "killed" else how]):
        with damaged(Case(directory, []), []) as copy, opened(copy, boots) as found:
            wanted.append(content(found))
    assert wanted[0][1][0][0] == (0, 10) and wanted[-1][0].epoch == (7 if how == "closed" else 8)
    return Case(directory, wanted)


Damage = list[tuple[str, int, bytes | None]]


@contextmanager
def damaged(of: Case, damage: Damage) -> Iterator[Path]:
    """A copy of a store with bytes replaced, or a file cut off (None) or away (None at 0)."""
    with tempfile.TemporaryDirectory(prefix="relocator-fuzz-", dir=_WHERE) as directory:
        for name in ("lock", *FILES):
            shutil.copyfile(of.directory / name, Path(directory, name))
        with Path(directory, "disk.img").open("wb") as image:
            image.truncate(SIZE_BYTES)
        shutil.copystat(of.directory / "disk.img", image.name)
        for name, at, data in damage:
            path = Path(directory, name)
            raw = bytearray(path.read_bytes()) if path.exists() else bytearray()
            start = at % max(len(raw), 1)
            if data is None:
                os.truncate(path, start) if start else path.unlink(missing_ok=True)
            elif raw:
                raw[start : start + len(data)] = data
                path.write_bytes(raw)
        yield Path(directory)


def check(how: str, damage: Damage) -> str:
    """What became of a store that was damaged; an assertion if it is believed, or left open."""
    of = case(how)
    before = open_files()
    try:
        return _opens(of, how, damage)
    finally:
        assert open_files() == before


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _opens(of: Case, how: str, damage: Damage) -> str:
    try:
        with damaged(of, damage) as directory:
            with opened(directory, how) as store:
                found = content(store)
            assert found in of.wanted
            return "recovered"
    except RelocatorError as error:
        assert str(error)
        return "refused"


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    found: Damage = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(FILES))
        # The map's pages in use are its first, and of each the beginning.
        at = draw(st.integers(0, 40)) + PAGE_BYTES * draw(st.integers(0, 7))
        at = at if draw(st.booleans()) else draw(st.integers(0, 1 << 16))
        kept = [st.none(), st.binary(min_size=1, max_size=8), st.just(bytes(PAGE_BYTES))]
        found.append((name, at, draw(st.one_of(*kept))))
    return found


def seen(how: str, damage: Damage) -> Damage:
    """The damage but for what can't be seen."""
    return [
        one
        for one in damage
        if how != "killed" or one[0] == "meta.json" or (one[0] == "map.live" and one[2] is None)
    ]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(HOW), damages())
@example("closed", [("map.live", PAGE_BYTES, b"\xff")])
@example("closed", [("map.durable", PAGE_BYTES, bytes(PAGE_BYTES))])
@example("powerless", [("map.durable", 0, bytes(2 * PAGE_BYTES))])
def test_store(how: str, damage: Damage) -> None:
    check(how, seen(how, damage))


def every_byte(name: str) -> list[int]:
    size = (case("closed").directory / name).stat().st_size
    return list(range(size)) if name == "meta.json" else [*range(0, size, 61), size - 1]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("value", [0x00, 0x31, 0xFF])
def test_any_byte_of_the_metadata_may_be_another(how: str, value: int) -> None:
    for at in every_byte("meta.json"):
        check(how, [("meta.json", at, bytes([value]))])


@pytest.mark.parametrize("how", ["closed", "powerless"])
@pytest.mark.parametrize("name", ["map.durable", "map.live"])
def test_any_byte_of_a_map_may_be_another(how: str, name: str) -> None:
    raw = (case(how).directory / name).read_bytes()
    outcomes = {check(how, [(name, at, bytes([raw[at] ^ 0x10]))]) for at in every_byte(name)}
    assert "recovered" in outcomes
