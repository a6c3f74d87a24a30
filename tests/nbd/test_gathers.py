"""The copy's connections wait for several packets of a reply before they wake."""

import random
import threading
from pathlib import Path
from typing import Any

import pytest

from relocator.source import handles
from relocator.source.connection import GATHER_BYTES, Connection
from relocator.source.endpoint import Endpoint
from relocator.source.requests import Request
from relocator.source.sockets import LowWater
from tests.support.servers import nbdkit

SIZE_BYTES = 64 << 20
PIECE_BYTES = 1 << 20


def asked(connected: Connection, *requests: tuple[str, int, int]) -> list[Request]:
    """What came of requests of (kind, offset, length), asked all at once."""
    done = threading.Semaphore(0)
    made = [Request(*one, lambda _: done.release()) for one in requests]
    for request in made:
        connected.submit(request)
    for _ in made:
        assert done.acquire(timeout=30)
    assert [request.error for request in made] == [None] * len(made)
    return made


@pytest.mark.parametrize(
    "serve", [["--filter=noextents", "file"], ["file"]], ids=["plain", "holes"]
)
def test_whatever_else_was_asked_replies_gather_and_are_right(
    serve: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.Random(1).randbytes(SIZE_BYTES)
    (tmp_path / "disk").write_bytes(content)
    marks: list[int] = []

    class Noted(LowWater):
        def set(self, least_bytes: int) -> None:
            marks.append(least_bytes)
            super().set(least_bytes)

    monkeypatch.setattr(handles, "LowWater", Noted)
    with nbdkit(tmp_path, "source", [*serve, str(tmp_path / "disk")]) as source:
        copier = Connection(Endpoint(source.uri), "copier", gathers=True)
        copier.start()
        try:
            asked(copier, ("block status", 0, SIZE_BYTES))
            pieces = range(0, SIZE_BYTES, PIECE_BYTES)
            read: list[Any] = asked(copier, *(("read", at, PIECE_BYTES) for at in pieces))
            assert b"".join(one.data for one in read) == content
            assert copier.owed_bytes == 0
        finally:
            copier.close()
    assert GATHER_BYTES in marks, "each packet woke it up"
