"""The durable map and the commit: what is believed after which kind of crash."""

import errno
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relocator.errors import ConfigError, StoreError
from relocator.store import maps, meta
from relocator.store.bitmap import Bitmap
from relocator.store.maps import PAGE_BITS, PAGE_BYTES, DurableMap
from relocator.store.meta import Base
from relocator.store.store import Store
from tests.support.stores import make_store

BITS = PAGE_BITS * 2 + 100


def load(path: Path) -> list[Bitmap]:
    planes = [Bitmap(BITS) for _ in maps.PLANES]
    durable = DurableMap(path, BITS)
    for page, bits in durable.committed():
        plane, first, _ = durable.span(page)
        planes[plane].insert(first, bits)
    durable.close()
    return planes


def payload(*bits: int) -> bytes:
    bitmap = Bitmap(PAGE_BITS)
    for bit in bits:
        bitmap.set(bit, bit + 1)
    return bitmap.extract(0, PAGE_BITS)


def test_pages_come_back_as_they_were_written(tmp_path: Path) -> None:
    durable = DurableMap(tmp_path / "map", BITS)
    durable.write([(0, payload(1, 5)), (4, payload(7))])
    durable.sync()
    durable.write([(0, payload(1, 5, 6))])
    durable.sync()
    durable.close()
    present, dirty, _ = load(tmp_path / "map")
    assert list(present.set_runs(0, BITS)) == [(1, 2), (5, 7)]
    assert list(dirty.set_runs(0, BITS)) == [(PAGE_BITS + 7, PAGE_BITS + 8)]


@pytest.mark.parametrize("seed", range(8))
def test_a_torn_write_leaves_the_version_before(tmp_path: Path, seed: int) -> None:
    durable = DurableMap(tmp_path / "map", BITS)
    durable.write([(0, payload(1))])
    durable.sync()
    before = (tmp_path / "map").read_bytes()
    durable.write([(0, payload(1, 2))])
    durable.sync()
    durable.close()
    after = (tmp_path / "map").read_bytes()
    cut = random.Random(seed).randrange(1, PAGE_BYTES - 1)
    changed = next(at for at in range(len(after)) if before[at] != after[at]) // PAGE_BYTES
    torn = bytearray(before)
    slot = changed * PAGE_BYTES
    torn[slot : slot + cut] = after[slot : slot + cut]
    (tmp_path / "map").write_bytes(torn)
    present, *_ = load(tmp_path / "map")
    # All of it arrived only if the cut lies behind the last byte that differs.
    assert list(present.set_runs(0, BITS)) in ([(1, 2)], [(1, 3)])
    if bytes(torn) != after:
        assert list(present.set_runs(0, BITS)) == [(1, 2)]


def test_a_page_damaged_in_both_versions_is_an_error_not_an_empty_map(tmp_path: Path) -> None:
    durable = DurableMap(tmp_path / "map", BITS)
    durable.write([(0, payload(1))])
    durable.sync()
    durable.write([(0, payload(1, 2))])
    durable.sync()
    durable.close()
    content = bytearray((tmp_path / "map").read_bytes())
    for at in (100, PAGE_BYTES + 100):
        content[at] ^= 0xFF
    (tmp_path / "map").write_bytes(content)
    with pytest.raises(StoreError, match="damaged in both versions"):
        load(tmp_path / "map")


def open_small(directory: Path) -> Store:
    return make_store(directory, 1 << 20)


def mark(store: Store, first: int, end: int) -> None:
    with store.lock:
        store.mark_present_locked(first, end)


@pytest.mark.parametrize(("rebooted", "present", "dirty"), [(False, 5, 1), (True, 3, 0)])
def test_what_was_not_committed_survives_a_killed_process_but_not_a_reboot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rebooted: bool, present: int, dirty: int
) -> None:
    store = open_small(tmp_path / "s")
    epoch = store.meta.epoch
    mark(store, 0, 3)
    store.commit()
    mark(store, 10, 12)
    store.mark_dirty(10, 11)
    store.abandon()  # the process dies here: nothing is committed any more
    if rebooted:
        monkeypatch.setattr("relocator.store.store.boot_id", lambda: "another boot".ljust(36))
    store = open_small(tmp_path / "s")
    assert (store.present_blocks, store.dirty_blocks) == (present, dirty)
    assert store.meta.epoch == epoch + rebooted  # what the dirty map says is void after a crash
    store.close()


@pytest.mark.parametrize("rebooted", [False, True])
def test_scattered_blocks_of_a_large_disk_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rebooted: bool
) -> None:
    size_bytes = 1 << 40
    store = make_store(tmp_path / "s", size_bytes)
    choose = random.Random(7)
    committed = sorted({choose.randrange(store.geometry.total_blocks) for _ in range(300)})
    for block in committed:
        mark(store, block, block + 1)
    store.commit()
    late = sorted({choose.randrange(store.geometry.total_blocks) for _ in range(300)})
    for block in late:
        mark(store, block, block + 1)
    wanted = set(committed) if rebooted else {*committed, *late}
    store.abandon()
    if rebooted:
        monkeypatch.setattr("relocator.store.store.boot_id", lambda: "another boot".ljust(36))
    for _ in range(2):  # the second time with what the first had to make good
        store = make_store(tmp_path / "s", size_bytes)
        found = {
            block
            for first, end in store.present.set_runs(0, store.geometry.total_blocks)
            for block in range(first, end)
        }
        assert found == wanted
        assert store.present_blocks == len(wanted)
        store.commit()
        store.abandon()
        monkeypatch.setattr("relocator.store.store.boot_id", lambda: "one more boot".ljust(36))


def test_a_power_failure_in_standby_leaves_what_the_copy_was_taken_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Base("source", 3)
    store = open_small(tmp_path / "s")
    store.update(standby=True, base=base)
    mark(store, 0, 3)
    store.commit()
    store.abandon()
    monkeypatch.setattr("relocator.store.store.boot_id", lambda: "another boot".ljust(36))
    store = open_small(tmp_path / "s")
    assert store.present_blocks == 3
    assert store.meta.base == base  # else it would be activated without sealing that
    store.close()


def test_data_is_durable_before_the_map_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_small(tmp_path / "s")
    order: list[str] = []
    sync, write = store.image.sync, store._durable.write
    monkeypatch.setattr(store.image, "sync", lambda: (order.append("data"), sync())[1])
    monkeypatch.setattr(
        store._durable, "write", lambda pages: (order.append("map"), write(pages))[1]
    )
    mark(store, 0, 1)
    store.commit()
    store.commit()  # no bit has changed: the data only
    assert order == ["data", "map", "data"]
    store.close()


def test_after_a_failed_commit_none_succeeds_and_a_restart_believes_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have dropped the data of block 5, whose bit is in the live map."""
    store = open_small(tmp_path / "s")
    mark(store, 0, 3)
    store.commit()
    mark(store, 5, 6)

    def fail() -> None:
        raise OSError(errno.EIO, "the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(store.image, "sync", fail)
        with pytest.raises(StoreError, match="the disk is gone"):
            store.commit()
    with pytest.raises(StoreError, match="an earlier commit failed"):
        store.commit()
    store.abandon()
    store = open_small(tmp_path / "s")
    assert list(store.present.set_runs(0, store.geometry.total_blocks)) == [(0, 3)]
    store.close()


def test_a_lost_image_is_never_taken_for_an_empty_one(tmp_path: Path) -> None:
    open_small(tmp_path / "s").close()
    (tmp_path / "s" / "disk.img").unlink()
    with pytest.raises(ConfigError, match=r"disk\.img: No such file"):
        open_small(tmp_path / "s")


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    open_small(tmp_path / "s").close()
    (tmp_path / "s" / "meta.json").write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="format 99; this version reads formats 1 and 2"):
        open_small(tmp_path / "s")


def as_format_1(path: Path) -> dict[str, Any]:
    """What meta.json would be if an earlier version had written it."""
    found: dict[str, Any] = json.loads(path.read_text())
    return {key: value for key, value in found.items() if key != "checksum"} | {"format": 1}


def test_a_store_without_a_checksum_is_read_and_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "s" / "meta.json"
    store = open_small(tmp_path / "s")
    store.close()
    path.write_text(json.dumps(as_format_1(path)))
    store = open_small(tmp_path / "s")
    store.close()
    assert json.loads(path.read_text())["format"] == 2
    assert meta.read(tmp_path / "s") == replace(store.meta, clean=True)


def test_a_damaged_digit_does_not_make_an_earlier_format_of_a_store(tmp_path: Path) -> None:
    path = tmp_path / "s" / "meta.json"
    open_small(tmp_path / "s").close()
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(ConfigError, match=r"meta\.json is damaged"):
        open_small(tmp_path / "s")


def test_the_boot_id_has_the_length_the_header_wants() -> None:
    assert len(maps.boot_id()) == 36
