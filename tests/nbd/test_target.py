"""The target, with real nbdkit: the image holds exactly what clients wrote."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.model import Actor, source_bytes
from tests.support.servers import PLUGIN, nbdkit, plugin, proxy, refused

SIZE_BYTES = (2 << 20) + 512


def test_random_requests_read_like_the_model_and_end_up_in_the_image(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(source_bytes(SIZE_BYTES))
    model = source_bytes(SIZE_BYTES)
    with plugin(tmp_path, "target", f"disk={image}") as server:
        actor = UntrimmedActor(server.connect(), model, 0, SIZE_BYTES, 3)
        for _ in range(300):
            actor.step()
        actor.check_all()
    assert image.read_bytes() == model


class UntrimmedActor(Actor):
    """A target has no blocks: it trims to the byte."""

    def _trim(self, offset: int, length: int, flags: int) -> None:
        self._handle.trim(length, offset, flags)
        self._model[offset : offset + length] = bytes(length)


def test_two_clients_see_each_others_writes(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    with plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}") as server:
        one, two = server.connect(), server.connect()
        assert one.can_multi_conn() and one.can_fua() and one.can_flush()
        one.pwrite(b"hello", 4094)
        assert two.pread(5, 4094) == b"hello"


def test_holes_of_the_image_are_told(tmp_path: Path) -> None:
    with (tmp_path / "disk.img").open("wb") as disk:
        disk.seek(8 << 20)
        disk.write(b"x" * 4096)
        disk.truncate(16 << 20)
    entries: list[int] = []
    with plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}") as server:
        server.connect().block_status(
            16 << 20, 0, lambda _context, _offset, got, _error: entries.extend(got) or 0
        )
    assert entries == [8 << 20, 3, 4096, 0, (8 << 20) - 4096, 3]


def test_it_works_in_the_background_with_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"relative" * 512)
    with Daemon(tmp_path) as uri:
        done = subprocess.run(
            ["nbdcopy", uri, str(tmp_path / "out.img")], check=True, capture_output=True
        )
    assert done.returncode == 0
    assert (tmp_path / "out.img").read_bytes() == b"relative" * 512


class Daemon:
    """Our plugin gone into the background, ended by its pid file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> str:
        subprocess.run(
            ["nbdkit", "-P", "pid", "-U", str(self._directory / "sock"), "python", str(PLUGIN)]
            + ["disk=disk.img", "control=control"],
            cwd=self._directory,
            check=True,
        )
        return f"nbd+unix:///?socket={self._directory / 'sock'}"

    def __exit__(self, *_exception: object) -> None:
        os.kill(int((self._directory / "pid").read_text()), signal.SIGTERM)


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (["disk=/nonexistent.img"], "disk=/nonexistent.img: No such file"),
        ([], "give disk=PATH (a target) or store=DIR (a proxy): neither was given"),
        (["disc=/a"], "disc=/a: unknown key; known: disk"),
        (["disk=/a", "rate=5M"], "rate=5M: is for a proxy, and a proxy needs store=DIR"),
        (["store=/tmp/x", "source=http://a"], "source=http://a: not an NBD URI"),
        (["store=/tmp/x", "rate=fast"], "rate=fast: not a rate in bits a second"),
        (["store=/tmp/x", "block=5000"], "block=5000: must be a power of two"),
        (["store=/tmp/x", "background=maybe"], "background=maybe: must be one of on, off"),
        (["store=/tmp/x", "order=backwards"], "order=backwards: must be one of recent, in-use"),
        (["store=/tmp/x", "window=1"], "window=1: too small"),
        (["store=/tmp/x-never-made"], "source is missing"),
        (["store=/etc/passwd", "source=nbd://h"], "store=/etc/passwd: is a file"),
        (["disk=/a", "disk=/b"], "disk=/b: was given twice"),
        (
            ["store=/tmp/x-never-made", "source=nbd+unix:///?socket=/nonexistent"],
            "can't be connected to",
        ),
    ],
)
def test_bad_parameters_end_nbdkit_with_a_line_that_names_them(
    keys: list[str], wanted: str
) -> None:
    assert wanted in refused(*keys)
    assert not Path("/tmp/x-never-made").exists()


def test_a_store_in_use_or_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(1 << 20))
    (tmp_path / "b.img").write_bytes(bytes(2 << 20))
    store = f"store={tmp_path / 'store'}"
    with nbdkit(tmp_path, "a", ["file", str(tmp_path / "a.img")]) as a:
        with nbdkit(tmp_path, "b", ["file", str(tmp_path / "b.img")]) as b:
            with plugin(tmp_path, "proxy", store, f"source={a.uri}", "background=off"):
                assert "is in use by another process" in refused(store, f"source={a.uri}")
            assert "holds a copy with size_bytes=1048576" in refused(store, f"source={b.uri}")


def test_an_image_that_looks_like_another_format_is_served_raw_and_that_is_said(
    tmp_path: Path,
) -> None:
    image = tmp_path / "disk.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    raw = image.read_bytes()
    wanted = f"disk={image}: looks like a qcow2 image, and is served as it is, byte by byte; "
    with plugin(tmp_path, "target", f"disk={image}", f"store={tmp_path / 'maps'}") as server:
        assert server.connect().pread(len(raw), 0) == raw
        (note,) = server.status()["notes"]
        assert note.startswith(wanted) and "qemu-img convert -O raw" in note
        assert f"relocator: {note}\n" in server.log.read_text()
        with proxy(tmp_path, server) as copy:  # which is what its source is
            copy.wait()
            assert not [one for one in copy.status()["notes"] if "looks like" in one]
    store = tmp_path / "store"
    for again in ((f"store={store}",), (f"disk={store / 'disk.img'}",)):
        with plugin(tmp_path, "again", *again) as server:
            assert server.status()["notes"] == []


def test_a_directory_with_somebody_elses_image_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(1 << 20))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "disk.img").write_bytes(b"precious")
    with nbdkit(tmp_path, "a", ["file", str(tmp_path / "a.img")]) as a:
        said = refused(f"store={tmp_path / 'store'}", f"source={a.uri}")
    assert "is not a store (it has no meta.json), and its disk.img may be somebody's" in said
    assert "remove" not in said and said.endswith("; give another directory\n")
    assert [one.name for one in (tmp_path / "store").iterdir()] == ["disk.img"]
    assert (tmp_path / "store" / "disk.img").read_bytes() == b"precious"
