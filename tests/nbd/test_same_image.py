"""A store is of one image: with another one it isn't opened, whatever else is right."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import relocator
from tests.support.model import source_bytes
from tests.support.servers import plugin, refused
from tests.support.sites import BLOCK, SIZE_BYTES
from tests.support.sources import free_port

NEW = b"n" * BLOCK


def images(directory: Path) -> tuple[Path, Path]:
    """Two images of the disk's size; nothing is in them."""
    made = directory / "one.img", directory / "other.img"
    for path in made:
        with path.open("wb") as file:
            file.truncate(SIZE_BYTES)
    return made


@pytest.mark.parametrize("is_complete", [False, True], ids=("on its way", "complete"))
def test_a_copy_with_another_image_is_refused(sites: Any, is_complete: bool) -> None:
    a, b, _ = sites
    one, other = images(b.directory)
    with a.target() as first:
        with b.proxy(first, f"disk={one}", *([] if is_complete else ["background=off"])) as second:
            if is_complete:
                second.wait()
            second.connect().pwrite(NEW, 0)
        wanted = [f"store={b.directory / 'store'}", f"source={first.uri}"]
        for keys in (wanted, wanted[:1] if is_complete else wanted):
            said = refused(*keys, f"disk={other}")
            assert (
                f"disk={other}: the store {b.directory / 'store'} is for {one}; give that" in said
            )
        assert not any(other.read_bytes())
        with b.proxy(first, f"disk={one}") as second:
            assert second.connect().pread(BLOCK, 0) == NEW


def test_a_copy_that_has_its_image_in_its_store_is_refused_with_another(sites: Any) -> None:
    a, b, _ = sites
    _, other = images(b.directory)
    with a.target() as first:
        with b.proxy(first) as second:
            second.wait()
        said = refused(f"store={b.directory / 'store'}", f"source={first.uri}", f"disk={other}")
        assert f"disk={other}: the store {b.directory / 'store'} is for {b.copy}" in said
        assert f"is for {b.copy}" in refused(f"store={b.directory / 'store'}", f"disk={other}")
        with b.proxy(first, f"disk={b.copy}") as second:
            assert second.connect().pread(SIZE_BYTES, 0) == source_bytes(SIZE_BYTES)


def test_a_copy_that_is_complete_does_not_graduate_with_another_image(sites: Any) -> None:
    a, b, _ = sites
    one, other = images(b.directory)
    with a.target() as first, b.proxy(first, f"disk={one}") as second:
        second.wait()
    words = ["proxy", str(b.directory / "store"), first.uri, "--graduate", "--disk"]
    done = relocator(*words, str(other), "--listen", f"127.0.0.1:{free_port()}")
    assert done.returncode == 2, done.stderr
    assert f"disk={other}: the store {b.directory / 'store'} is for {one}; give that" in done.stderr


def test_a_disk_that_returns_to_another_image_is_refused(sites: Any) -> None:
    a, b, _ = sites
    _, other = images(a.directory)
    with a.target() as first, b.proxy(first) as second:
        second.wait()
        first.kill()
        wanted = (f"store={a.maps}", f"source={second.uri}")
        assert f"disk={other}: the store {a.maps} is for {a.image}" in refused(
            *wanted, f"disk={other}"
        )
        with plugin(a.directory, "proxy", *wanted, f"disk={a.image}") as back:
            back.wait()
            assert back.connect().pread(SIZE_BYTES, 0) == source_bytes(SIZE_BYTES)


@pytest.mark.parametrize("by", ["nothing", "a link", "a way around", "a relative path"])
def test_an_image_may_be_named_by_another_path(sites: Any, by: str) -> None:
    a, b, _ = sites
    one, _ = images(b.directory)
    (b.directory / "link").symlink_to(one)
    path = {
        "nothing": None,
        "a link": b.directory / "link",
        "a way around": b.directory / ".." / "b" / "one.img",
        "a relative path": os.path.relpath(one),
    }[by]
    with a.target() as first:
        with b.proxy(first, f"disk={one}", "background=off") as second:
            second.connect().pwrite(NEW, 0)
        with b.proxy(first, *([] if path is None else [f"disk={path}"])) as second:
            second.wait()
            assert second.connect().pread(BLOCK, 0) == NEW
        assert one.read_bytes()[:BLOCK] == NEW


def test_a_copy_goes_on_by_the_link_that_it_was_begun_with(sites: Any) -> None:
    a, b, _ = sites
    one, _ = images(b.directory)
    link = b.directory / "link"
    link.symlink_to(one)
    with a.target() as first:
        for path in (link, one):
            with b.proxy(first, f"disk={path}", "background=off") as second:
                second.connect().pwrite(NEW, 0)
