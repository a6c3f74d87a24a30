"""A change of a disk's state that was refused because it couldn't be made durable: nobody finds it.

What failed is the last step, the sync of the directory: by then the file has its new name.
"""

import ctypes
import errno
import json
from pathlib import Path

import pytest

from relocator.errors import StoreError
from relocator.running.lifecycle import Lifecycle
from relocator.running.states import State
from relocator.store import meta as metadata
from relocator.store import syscalls
from relocator.store.meta import Meta, Takeover
from relocator.store.opening import open_store, open_target
from relocator.store.store import Store

SIZE_BYTES = 1 << 20
TOKEN = "1" * 32


def refuse_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next sync of a store's directory fails."""
    sync, failures = metadata.sync_directory, [OSError(5, "Input/output error")]

    def failing(directory: Path) -> None:
        if failures:
            raise failures.pop()
        sync(directory)

    monkeypatch.setattr(metadata, "sync_directory", failing)


def opened_proxy(tmp_path: Path) -> Store:
    fresh = Meta("b" * 32, SIZE_BYTES, 4096, source="nbd://x", complete=False, standby=True)
    return open_store(tmp_path / "store", fresh)


def test_an_activation_that_was_refused_is_not_begun_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened_proxy(tmp_path)
    lifecycle = Lifecycle(store)
    refuse_once(monkeypatch)
    with pytest.raises(StoreError):
        lifecycle.begin_activation(Takeover(TOKEN))
    assert lifecycle.state is State.STANDBY
    store.abandon()
    store = opened_proxy(tmp_path)
    assert Lifecycle(store).state is State.STANDBY
    store.abandon()


def test_a_seal_that_was_refused_does_not_shut_the_guest_out_of_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE_BYTES))
    store = open_target(image, tmp_path / "store", 4096)
    lifecycle = Lifecycle(store)
    refuse_once(monkeypatch)
    with pytest.raises(StoreError):
        lifecycle.seal(TOKEN, asked=True)
    turn = lifecycle.gate.enter()
    store.mark_dirty(0, 1)
    store.image.write(b"x" * 4096, 0)
    lifecycle.gate.leave(turn)
    store.commit()
    store.abandon()
    store = open_target(image, tmp_path / "store", 4096)
    assert Lifecycle(store).state is State.COMPLETE
    assert store.notes == ()
    store.abandon()


def test_a_takeover_is_noted_as_the_version_before_can_read_it(tmp_path: Path) -> None:
    store = opened_proxy(tmp_path)
    Lifecycle(store).begin_activation(Takeover(TOKEN, held=True))
    noted = json.loads((tmp_path / "store" / "meta.json").read_text())["takeover"]
    assert noted == {"token": TOKEN, "held": True, "withdrawn": False}
    store.abandon()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL])
def test_a_store_is_opened_where_the_kernel_does_not_say_what_it_could_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Kernel:
        @staticmethod
        def sync_file_range(*_: int) -> int:
            ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(syscalls, "_libc", Kernel)
    for _ in range(2):  # killed, and found again
        store = opened_proxy(tmp_path)
        store.check()
        store.commit()
        store.abandon()
