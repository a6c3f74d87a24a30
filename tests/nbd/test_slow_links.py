"""A link that is slow, and shared by many who ask at once: what must come is waited for."""

import time
from pathlib import Path

import pytest

from relocator.errors import UpstreamError
from relocator.source.endpoint import Endpoint
from relocator.source.handles import connected, read_many
from relocator.source.incoming import Incoming
from relocator.source.remote import Source
from relocator.source.replies import FIRST_READ_BYTES
from relocator.store.geometry import Extent
from tests.support.servers import nbdkit, target

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


def test_who_a_source_is_brings_no_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection that is made anew asks for that; of a large disk they are megabytes."""
    asked: list[int] = []
    ask = Incoming.ask

    def counted(self: Incoming, end: int) -> None:
        asked.append(end)
        ask(self, end)

    monkeypatch.setattr(Incoming, "ask", counted)
    with target(tmp_path, 64 << 20, "block=4K") as server:
        guest = server.connect()
        for at in range(0, 64 << 20, 1 << 14):
            guest.pwrite(bytes(512), at)
        source = Source(Endpoint(server.uri))
        answer = source.identify()
        assert answer is not None and not answer.attachments
        assert max(asked) <= FIRST_READ_BYTES
        assert len(source.call("identify").attachments["dirty"]) > 0
