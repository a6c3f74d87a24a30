"""A link that is slow, and shared by many who ask at once: what must come is waited for."""

import time
from pathlib import Path

import pytest

from relocator.errors import UpstreamError
from relocator.source.endpoint import Endpoint
from relocator.source.handles import connected, read_many
from relocator.store.geometry import Extent
from tests.support.servers import nbdkit

PLACES = [Extent(at << 16, 4096) for at in range(16)]


def asks(directory: Path, a_filter: str, *parameters: str, timeout_s: float) -> float:
    """How long it takes to read some places of a disk at once."""
    disk = directory / "disk.img"
    disk.write_bytes(b"x" * (1 << 20))
    arguments = ["-t", "1", f"--filter={a_filter}", "file", str(disk), *parameters]
    with nbdkit(directory, "source", arguments) as source:
        with connected(Endpoint(source.uri)) as handle:
            began_s = time.monotonic()
            assert read_many(handle, PLACES, timeout_s) == [b"x" * 4096] * len(PLACES)
            return time.monotonic() - began_s


def test_what_comes_slowly_is_waited_for(tmp_path: Path) -> None:
    assert asks(tmp_path, "rate", "rate=128K", timeout_s=1.0) > 1.0, "the link was not slow"


def test_what_does_not_come_is_not(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="no answer within 1 s"):
        asks(tmp_path, "delay", "rdelay=5", timeout_s=1.0)
