"""What a store knows of the blocks that were skipped as free."""

from pathlib import Path

import pytest

from relocator.errors import StoreError
from relocator.store import skipped
from relocator.store.meta import Meta
from relocator.store.opening import open_store


def test_it_adds_up_survives_and_is_refused_when_damaged(tmp_path: Path) -> None:
    fresh = Meta("a" * 32, 1 << 20, 4096, source="fake:", complete=False)
    store = open_store(tmp_path, fresh)
    assert skipped.noted(store) == []
    skipped.note(store, [(3, 9), (20, 21)])
    skipped.note(store, [(9, 12), (255, 256)])
    store.close()
    store = open_store(tmp_path, fresh)
    assert skipped.noted(store) == [(3, 12), (20, 21), (255, 256)]
    good = (tmp_path / skipped.NAME).read_bytes()
    for at in range(len(good)):
        (tmp_path / skipped.NAME).write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(StoreError, match="skipped is damaged"):
            skipped.noted(store)
    store.close()
