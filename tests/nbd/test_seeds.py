"""Content that is at the destination already is not sent: `seed=PATH,...`."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.model import Actor, source_bytes
from tests.support.servers import Server, nbdkit, plugin, proxy, refused, wait_for
from tests.support.sources import Relay, free_port

SIZE_BYTES = (24 << 20) + 5 * 512  # the last unit of any size is a short one
UNIT_BYTES = 256 << 10
PIECE_BYTES = 4096


@contextmanager
def source_of(directory: Path, content: bytes, *keys: str) -> Iterator[Server]:
    """Our target with that content."""
    path = directory / "disk.img"
    path.write_bytes(content)
    with plugin(directory, "target", f"disk={path}", *keys) as server:
        yield server


def changed(content: bytes, share: float, seed: int = 3) -> bytearray:
    """A share of its pieces of 4 KiB is another, here and there."""
    choose = random.Random(seed)
    made = bytearray(content)
    pieces = range(0, len(content), PIECE_BYTES)
    for at in choose.sample(pieces, int(len(pieces) * share)):
        length = len(made[at : at + PIECE_BYTES])
        made[at : at + length] = choose.randbytes(length)
    return made


def seed_of(directory: Path, content: bytes, name: str = "template.img") -> str:
    (directory / name).write_bytes(content)
    return f"seed={directory / name}"


def image(directory: Path) -> bytes:
    return (directory / "store" / "disk.img").read_bytes()


@contextmanager
def counted(source: Server) -> Iterator[tuple[str, Relay]]:
    """The source behind a relay that counts; its URI there."""
    relay = Relay(source.socket)
    try:
        yield f"nbd://127.0.0.1:{relay.port}", relay
    finally:
        relay.close()


def test_a_disk_made_from_the_template_costs_what_was_changed(tmp_path: Path) -> None:
    """All that crosses the link is counted, both ways: blocks, digests, requests, and the rest."""
    template = random.Random(1).randbytes(SIZE_BYTES)
    disk = bytes(changed(template, 0.05))
    with source_of(tmp_path, disk) as source, counted(source) as (uri, relay):
        with proxy(tmp_path, uri, seed_of(tmp_path, template)) as server:
            status = server.wait()
    assert image(tmp_path) == disk
    share = relay.passed_bytes / SIZE_BYTES
    digests = status["digest_bytes"] / SIZE_BYTES
    print(f"5 % changed: {share:.2%} of the disk crossed the link, {digests:.2%} were digests")
    assert share <= 0.08


@pytest.mark.parametrize("block_bytes", [512, 4096, 1 << 16, 1 << 20])
def test_what_a_seed_has_is_not_fetched(tmp_path: Path, block_bytes: int) -> None:
    template = random.Random(1).randbytes(SIZE_BYTES)
    disk = bytes(changed(template, 0.002))
    with source_of(tmp_path, disk) as source:
        seed = seed_of(tmp_path, template)
        with proxy(tmp_path, source, seed, f"block={block_bytes}") as server:
            status = server.wait()
            assert image(tmp_path) == disk
    assert status["seeded_bytes"] + status["background_bytes"] == SIZE_BYTES
    least = 13 * max(block_bytes, PIECE_BYTES)  # so many pieces differ, each in a block of its own
    assert status["background_bytes"] <= least
    assert status["seeding"] == "over"
    assert 0 < status["digest_bytes"] < SIZE_BYTES / PIECE_BYTES * 32
