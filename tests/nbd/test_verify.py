"""What `verify` has compared, and what not: it says success only of a copy that is proven."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from relocator.errors import RelocatorError
from relocator.running.states import State
from relocator.store.geometry import Geometry
from tests.nbd.test_graduate import graduate
from tests.support import ext_images as images
from tests.support.command import relocator
from tests.support.servers import Server, plugin, wait_for
from tests.support.sites import BLOCK, SIZE_BYTES, Site

TOTAL = SIZE_BYTES // BLOCK
OLD = b"old data"
needs_ext = pytest.mark.skipif(bool(images.MISSING), reason=f"not installed: {images.MISSING}")


@pytest.fixture(params=[BLOCK])
def free(request: pytest.FixtureRequest, sites: Any, tmp_path: Path) -> list[int]:
    """The disk at site a is a file system with old data where it is free: in these 4 KiB."""
    options = ["-t", "ext4", "-E", "nodiscard", "-b", str(request.param)]
    made = images.make(tmp_path / "made.img", "16M", options, images.tree(tmp_path / "files"))
    ranges = images.free_ranges(made)
    disk = bytearray(made.read_bytes())
    for first, end in ranges:
        disk[first:end] = OLD * ((end - first) // len(OLD))
    sites[0].image.write_bytes(disk)
    return [at for first, end in ranges for at in range(-(-first // BLOCK), end // BLOCK)]


@contextmanager
def skipping(site: Site, source: Server, *keys: str) -> Iterator[tuple[Server, dict[str, Any]]]:
    """A copy that is complete, with the source's free blocks skipped, and its status."""
    with site.proxy(source, "skip-free=yes", "background=off", *keys) as server:
        wait_for(lambda: server.status()["skipped_bytes"], "the free blocks")
        server.control.call("set", background="on")
        yield server, server.wait()


def damage(image: Path, block: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(block * BLOCK)
        file.write(data)


def in_use(site: Site) -> int:
    """A block all of which is in use, and that has something in it."""
    raw = site.image.read_bytes()
    pieces = [raw[at : at + BLOCK] for at in range(0, len(raw), BLOCK)]
    return max(at for at, piece in enumerate(pieces) if any(piece) and OLD not in piece)


@needs_ext
@pytest.mark.parametrize(
    ("free", "block"), [(4096, "4K"), (4096, "64K"), (1024, "512")], indirect=["free"]
)
@pytest.mark.usefixtures("free")
def test_what_was_skipped_as_free_is_told_from_damage(sites: Any, block: str) -> None:
    a, b, _ = sites
    with a.target() as target, skipping(b, target, f"block={block}") as (server, status):
        proof = server.control.call("verify")
        geometry = Geometry(status["size_bytes"], status["block_bytes"])
        skipped = proof["skipped_blocks"] * geometry.block_bytes
        assert 0 < status["skipped_bytes"] <= skipped  # the same, but for parts of 4 KiB
        assert proof["verified_blocks"] + proof["skipped_blocks"] == geometry.total_blocks
        assert proof["unverified_blocks"] == proof["absent_blocks"] == 0
        said = relocator("verify", str(server.control_path))
        assert f"skipped blocks: {proof['skipped_blocks']:,}\n" in said.stdout
        assert said.returncode == 0
        used = in_use(a)
        damage(b.copy, used, bytes(BLOCK))  # of what was copied zeros are damage, too
        first = used * BLOCK // geometry.block_bytes
        with pytest.raises(RelocatorError, match=f"1 of .* differ .* the first is {first}$"):
            server.control.call("verify")


@needs_ext
def test_what_was_skipped_is_known_to_a_proxy_that_is_started_again(
    sites: Any, free: list[int]
) -> None:
    a, b, _ = sites
    with a.target() as target:
        with skipping(b, target) as (server, _):
            proof = server.control.call("verify")
            server.kill()
        with b.proxy(target) as server:
            again = server.control.call("verify")
            assert again["skipped_blocks"] == proof["skipped_blocks"] > 0
            damage(b.copy, free[-1], b"not what was put there")
            with pytest.raises(RelocatorError, match=f"the first is {free[-1]}$"):
                server.control.call("verify")


@needs_ext
@pytest.mark.parametrize("mode", ["active", "standby"])
@pytest.mark.usefixtures("free")
def test_a_disk_that_returns_differs_where_its_source_has_skipped(sites: Any, mode: str) -> None:
    a, b, _ = sites
    with a.target() as target, skipping(b, target) as (server, status):
        target.kill()
        server.connect().pwrite(b"news", 0)
        wanted = (f"disk={a.image}", f"store={a.maps}", f"source={server.uri}", f"mode={mode}")
        with plugin(a.directory, "home", *wanted) as home:
            home.control.call("activate", wait=True)
            home.wait()
            assert home.status()["error"] is None
            proof = home.control.call("verify")
            assert proof["skipped_blocks"] * BLOCK == status["skipped_bytes"]
            assert proof["verified_blocks"] + proof["skipped_blocks"] == status["total_blocks"]


def test_a_copy_that_is_not_complete_is_no_success(sites: Any) -> None:
    a, b, _ = sites
    with a.target() as target, b.proxy(target, "background=off", "readahead=0") as server:
        guest = server.connect()
        guest.pread(3 * BLOCK, 8 * BLOCK)
        guest.pwrite(b"n" * BLOCK, 0)
        proof = server.control.call("verify")
        assert (proof["state"], proof["verified_blocks"]) == (State.ACTIVE, 3)
        assert (proof["unverified_blocks"], proof["absent_blocks"]) == (1, TOTAL - 4)
        said = relocator("verify", str(server.control_path))
        assert said.returncode == 1
        assert f"absent blocks: {TOTAL - 4:,}\n" in said.stdout
        assert f"{TOTAL - 4:,} of {TOTAL:,} blocks are absent: only the source" in said.stderr
        assert "`relocator wait" in said.stderr
        damage(b.copy, 9, b"damaged")
        with pytest.raises(RelocatorError, match=r"1 of 3 blocks differ .* the first is 9$"):
            server.control.call("verify")
        damage(b.copy, 9, a.image.read_bytes()[9 * BLOCK : 10 * BLOCK])
        server.control.call("set", background="on")
        server.wait()
        assert relocator("verify", str(server.control_path)).returncode == 0


def test_of_a_disk_that_has_graduated_nothing_is_proven(sites: Any) -> None:
    a, b, _ = sites
    with a.target() as target:
        with b.proxy(target) as server:
            server.wait()
            assert relocator("verify", str(server.control_path)).returncode == 0
        with graduate(b.directory, target.uri) as plain:
            plain.await_state(graduated=True)
            said = relocator("verify", str(plain.control_path))
            assert (said.returncode, "compare before it does, by a proxy" in said.stderr) == (
                1,
                True,
            )
        damage(b.copy, 9, b"damaged")
        with b.proxy(target) as server:
            said = relocator("verify", str(server.control_path))
            assert (said.returncode, said.stdout) == (1, "")
            assert f"nothing is proven: none of {TOTAL} blocks could be compared" in said.stderr
            assert f"{TOTAL} count as written here (all do once the disk has grad" in said.stderr


def test_where_nothing_has_come_yet_nothing_is_proven(sites: Any) -> None:
    a, b, _ = sites
    with a.target() as target, b.proxy(target, "background=off", "readahead=0") as server:
        said = relocator("verify", str(server.control_path))
        assert said.returncode == 1
        assert f"nothing is proven: none of {TOTAL} blocks" in said.stderr
        assert f"{TOTAL} are absent" in said.stderr
