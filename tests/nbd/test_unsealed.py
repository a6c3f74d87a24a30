"""What ends a start is found before the source is asked: it stays where it is, and is written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.servers import Server, refused, target

SIZE_BYTES = 1 << 20


def a_trace_that_is_none(tmp_path: Path, _: Server) -> tuple[str, str]:
    (tmp_path / "trace").write_text("0,4096\nhere\n")
    return f"order=trace:{tmp_path}/trace", "trace: line 2: 'here' is not OFFSET[,LENGTH]"


def a_trace_below_zero(tmp_path: Path, _: Server) -> tuple[str, str]:
    (tmp_path / "trace").write_text("-4096\n")
    return f"order=trace:{tmp_path}/trace", "trace: line 1: '-4096' has a number below 0"


@pytest.mark.parametrize(
    "wrong",
    [
        a_trace_that_is_none,
        a_trace_below_zero,
    ],
    ids=lambda wrong: wrong.__name__,
)
def test_a_start_that_is_refused_leaves_the_source_unsealed(
    tmp_path: Path, wrong: Callable[[Path, Server], tuple[str, str]]
) -> None:
    with target(tmp_path, SIZE_BYTES) as source:
        key, why = wrong(tmp_path, source)
        assert why in refused(f"source={source.uri}", f"store={tmp_path}/store", key)
        assert source.status()["state"] == "complete"
        source.connect().pwrite(b"written", 0)
