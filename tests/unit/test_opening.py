"""What a store is believed to be when it is opened, after whatever happened to it."""

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from relocator.errors import ConfigError, StoreError
from relocator.store import meta as metadata
from relocator.store.opening import open_target
from relocator.store.store import Store
from tests.support.stores import make_store

SIZE_BYTES = 1 << 20


def mark(store: Store, first: int, end: int) -> None:
    with store.lock:
        store.mark_present_locked(first, end)


def test_a_store_whose_making_was_cut_short_is_made_again(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", SIZE_BYTES)
    mark(store, 0, 3)
    store.commit()
    store.abandon()
    metadata.write(tmp_path / "s", replace(store.meta, creating=True))
    again = make_store(tmp_path / "s", SIZE_BYTES)
    assert again.present_blocks == 0  # nothing of it had been promised to anybody
    again.close()


def test_what_a_killed_process_had_replaced_is_durable_once_the_store_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "s", SIZE_BYTES).abandon()  # perhaps between a rename and its sync
    synced: list[Path] = []
    monkeypatch.setattr(metadata, "sync_directory", synced.append)
    make_store(tmp_path / "s", SIZE_BYTES).abandon()
    assert synced == [tmp_path / "s"]


def test_what_was_written_outside_is_found_by_the_start_after_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(SIZE_BYTES))
    store = open_target(image, tmp_path / "s", 4096)
    store.note_written()
    store.abandon()
    os.utime(image, ns=(0, 0))
    monkeypatch.setattr("relocator.store.store.boot_id", lambda: "another boot".ljust(36))
    if (child := os.fork()) == 0:
        monkeypatch.setattr(Store, "update", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        try:
            open_target(image, tmp_path / "s", 4096)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    store = open_target(image, tmp_path / "s", 4096)
    assert any("written by something else" in note for note in store.notes)
    store.close()


def test_lost_maps_are_never_taken_for_empty_ones(tmp_path: Path) -> None:
    make_store(tmp_path / "s", SIZE_BYTES).close()
    (tmp_path / "s" / "map.durable").unlink()
    with pytest.raises(ConfigError, match=r"map\.durable is missing"):
        make_store(tmp_path / "s", SIZE_BYTES)


def test_one_image_is_served_once(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(8192))
    first = open_target(image, None, 4096)
    with pytest.raises(ConfigError, match="is in use by another process"):
        open_target(image, None, 4096)
    first.abandon()
    open_target(image, None, 4096).abandon()


def test_an_incomplete_copy_is_not_served_as_a_disk(tmp_path: Path) -> None:
    make_store(tmp_path / "s", SIZE_BYTES).close()
    with pytest.raises(ConfigError, match="is the copy of a store that is not complete"):
        open_target(tmp_path / "s" / "disk.img", None, 4096)


def once(number: int) -> Callable[..., None]:
    """Fails with `number`, as often as it is called."""

    def fail(*_arguments: object) -> None:
        raise OSError(number, "made to fail")

    return fail


def test_a_store_that_was_full_for_a_moment_commits_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "s", SIZE_BYTES)
    mark(store, 4, 9)
    assert store._durable is not None
    with monkeypatch.context() as full:
        full.setattr(store._durable, "write", once(errno.ENOSPC))
        with pytest.raises(StoreError):
            store.commit()
    assert store.owes_commit
    store.commit()
    store.abandon()
    assert make_store(tmp_path / "s", SIZE_BYTES).present_blocks == 5


def test_room_for_the_maps_is_taken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.posix_fallocate", once(errno.ENOSPC))
    with pytest.raises(ConfigError, match=r"made to fail; its map map\.\w+ needs"):
        make_store(tmp_path / "s", SIZE_BYTES)
    monkeypatch.undo()
    store = make_store(tmp_path / "s", SIZE_BYTES)
    for name in ("map.live", "map.durable"):
        status = (tmp_path / "s" / name).stat()
        assert status.st_blocks * 512 >= status.st_size
    store.close()
