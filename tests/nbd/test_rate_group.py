"""Real proxies that share one cap: their sum keeps it, in equal parts, and a dead one has none."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.model import source_bytes
from tests.support.servers import Server, moving, nbdkit, proxy, refused, target, wait_for

SIZE_BYTES = 16 << 20
RATE_BYTES = 1_000_000  # a second
REQUEST_BYTES = 128 << 10
#: sizes of requests are different, and so is what each would do alone
KEYS = (("rate=8M",), ("window=16K",), ("window=1M", "connections=4"))


@contextmanager
def _group(directory: Path, keys: Sequence[tuple[str, ...]]) -> Iterator[list[Server]]:
    """A proxy for each of `keys`, all of one source, in one group; none copies yet."""
    (directory / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    with ExitStack() as stack:
        source = stack.enter_context(nbdkit(directory, "source", ["file", f"{directory}/disk.img"]))
        servers = []
        for number, more in enumerate(keys):
            home = directory / str(number)
            home.mkdir()
            group = ("background=off", f"rate-group={directory}/group")
            servers.append(stack.enter_context(proxy(home, source, *group, *more)))
        yield servers


def _copied(servers: Sequence[Server]) -> list[int]:
    return [server.status()["background_bytes"] for server in servers]


def test_three_proxies_keep_one_cap_and_have_equal_parts(tmp_path: Path) -> None:
    with _group(tmp_path, KEYS) as servers:
        for server in servers:
            wait_for(lambda one=server: one.status()["source_connected"], "the source")
        start_s = time.monotonic()
        for server in servers:
            server.control.call("set", background="on")
        wait_for(lambda: sum(_copied(servers)) > 4 * RATE_BYTES, "some of the copy", 120)
        copied = _copied(servers)
        allowed = RATE_BYTES * (time.monotonic() - start_s + 0.05) + len(KEYS) * REQUEST_BYTES
        assert sum(copied) <= allowed
        assert max(copied) <= 2 * min(copied)
        assert {one.status()["rate_cap_bits_per_s"] for one in servers} == {8e6}
        assert servers[1].status()["rate_group_members"] == len(KEYS)
        # the rate is the group's, whoever gets it
        servers[2].hurry()
        for number, server in enumerate(servers):
            server.wait()
            image = tmp_path / str(number) / "store" / "disk.img"
            assert image.read_bytes() == source_bytes(SIZE_BYTES)


def test_a_killed_member_leaves_its_part_to_the_others(tmp_path: Path) -> None:
    with _group(tmp_path, [("rate=8M",), ()]) as (dies, lives):
        for server in (dies, lives):
            server.control.call("set", background="on")
        wait_for(lambda: min(_copied([dies, lives])) > 0, "both copies")
        dies.kill()
        wait_for(lambda: lives.status()["rate_group_members"] < 2, "the dead one to be forgotten")
        lives.hurry()
        lives.wait()
        assert (tmp_path / "1" / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_a_file_that_is_no_groups_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    with ExitStack() as stack:
        with pytest.raises(RuntimeError, match=r"precious: is another file; give the path"):
            stack.enter_context(moving(tmp_path, 1 << 20, f"rate-group={tmp_path}/precious"))
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_bad_file_leaves_the_source_unsealed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    with target(tmp_path, 1 << 20) as source:
        group = f"rate-group={tmp_path}/precious"
        assert "is another file" in refused(
            f"source={source.uri}", f"store={tmp_path}/store", group
        )
        assert source.status()["state"] == "complete"
        source.connect().pwrite(b"written", 0)
