"""A few seconds of what `make soak TIME=3600` does for an hour."""

from pathlib import Path

import pytest

from tests.crash import flat
from tests.crash.flat import Size


def test_a_proxy_to_which_all_sorts_of_things_happen_stays_as_small(tmp_path: Path) -> None:
    assert flat.check(flat.run(tmp_path, 15.0, seed=1))


def test_what_grows_is_noticed() -> None:
    sizes = [Size(30 << 20, 8, 20 + at // 10) for at in range(100)]
    with pytest.raises(AssertionError, match="files has grown from 24"):
        flat.check(sizes)
