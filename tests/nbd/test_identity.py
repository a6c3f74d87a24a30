"""A source that comes back must be the disk it was: same size is not enough."""

import queue
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.errors import OtherDiskError, UpstreamError
from relocator.filesystem.rounds import ask_one
from relocator.source import digests, identity
from relocator.source.endpoint import Endpoint
from relocator.source.handles import connected, read_many
from relocator.source.identity import Guard, samples, samples_at
from relocator.source.remote import Source
from relocator.source.requests import Request
from relocator.source.upstream import Upstream
from relocator.store import meta as metadata
from tests.support.model import source_bytes
from tests.support.servers import (
    PLUGIN,
    Server,
    mistaken,
    nbdkit,
    proxy,
    refused,
    status_or_none,
    wait_for,
)
from tests.support.sources import daemon
from tests.support.stores import make_store

SIZE_BYTES = 4 << 20
PATIENCE_S = 120.0
Argv = Callable[[Path, Path], list[str]]


def foreign(image: Path, _maps: Path) -> list[str]:
    return ["file", str(image)]


def ours(image: Path, _maps: Path) -> list[str]:
    return ["python", str(PLUGIN), f"disk={image}"]


def ours_with_store(image: Path, maps: Path) -> list[str]:
    return ["python", str(PLUGIN), f"disk={image}", f"store={maps}"]


KINDS = pytest.mark.parametrize("kind", [foreign, ours, ours_with_store], ids=lambda k: k.__name__)


class Site:
    """A source whose image can be exchanged: what it serves is looked up at each start."""

    def __init__(self, directory: Path, kind: Argv, port: int) -> None:
        self.directory = directory
        for seed in (1, 2):
            (directory / f"{seed}.img").write_bytes(source_bytes(SIZE_BYTES, seed=seed))
        self.show(1)
        words = kind(directory / "shown.img", directory / "shown.maps")
        listen = ["-i", "127.0.0.1", "-p", str(port)]
        self.argv = ["nbdkit", "-t", "1", "-f", *listen, *words]

    def show(self, seed: int) -> None:
        """From the next start on, serve the image made with `seed`, with its own maps."""
        for suffix in ("img", "maps"):
            link = self.directory / f"shown.{suffix}"
            link.unlink(missing_ok=True)
            link.symlink_to(self.directory / f"{seed}.{suffix}")
        (self.directory / f"{seed}.maps").mkdir(exist_ok=True)


@contextmanager
def moving(tmp_path: Path, kind: Argv) -> Iterator[tuple[Any, Site]]:
    """A source of a kind."""
    found: list[Site] = []

    def argv(port: int) -> list[str]:
        found.append(Site(tmp_path, kind, port))
        return found[0].argv

    with daemon(tmp_path, "source", argv) as source:
        yield source, found[0]


def uri(source: Any) -> str:
    return f"nbd://127.0.0.1:{source.port}"


def trouble(server: Server) -> str:
    status = status_or_none(server.control)
    return str(status and status["error"])


@KINDS
def test_another_disk_of_the_same_size_is_noticed_when_it_answers_instead(
    tmp_path: Path, kind: Argv
) -> None:
    model = source_bytes(SIZE_BYTES)
    with moving(tmp_path, kind) as (source, site):
        more = ("background=off", "readahead=0", "retry-timeout=1")
        with proxy(tmp_path, uri(source), *more) as server:
            guest = server.connect()
            assert guest.pread(4096, 0) == model[:4096]
            source.kill()
            site.show(2)
            source.start()
            wait_for(lambda: "another disk" in trouble(server), "it to be noticed", PATIENCE_S)
            with pytest.raises(nbd.Error, match="Input/output error"):
                guest.pread(4096, 1 << 20)
            assert guest.pread(4096, 0) == model[:4096]
            source.kill()
            site.show(1)
            source.start()
            wait_for(lambda: server.status()["source_connected"], "the right", PATIENCE_S)
            assert "another disk" not in trouble(server)
            server.control.call("set", background="on")
            server.wait(PATIENCE_S)
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


@KINDS
def test_a_proxy_that_comes_back_takes_the_same_disk_and_no_other(
    tmp_path: Path, kind: Argv
) -> None:
    with moving(tmp_path, kind) as (source, site):
        with proxy(tmp_path, uri(source), "background=off") as server:
            server.connect().pread(4096, 0)
            server.process.send_signal(signal.SIGKILL)
        source.kill()
        site.show(2)
        source.start()
        assert "is not the disk that the store" in refused(
            f"store={tmp_path / 'store'}", f"source={uri(source)}"
        )
        source.kill()
        site.show(1)
        source.start()
        with proxy(tmp_path, uri(source)) as server:
            server.wait(PATIENCE_S)
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


@KINDS
def test_a_disk_that_answers_first_is_looked_at_though_no_block_is_here_yet(
    tmp_path: Path, kind: Argv
) -> None:
    with moving(tmp_path, kind) as (source, site):
        with proxy(tmp_path, uri(source), "background=off", "readahead=0"):
            pass
        source.kill()
        with proxy(tmp_path, uri(source), "readahead=0") as server:
            site.show(2)
            source.start()
            wait_for(lambda: "another disk" in trouble(server), "it to be noticed", PATIENCE_S)
            assert server.status()["present_blocks"] == 0
            source.kill()
            site.show(1)
            source.start()
            server.wait(PATIENCE_S)
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


@KINDS
def test_a_source_that_was_away_at_the_start_is_looked_at_when_it_comes(
    tmp_path: Path, kind: Argv
) -> None:
    with moving(tmp_path, kind) as (source, site):
        with proxy(tmp_path, uri(source), "background=off") as server:
            server.connect().pread(4096, 0)
        source.kill()
        with proxy(tmp_path, uri(source), "retry-timeout=3") as server:
            site.show(2)
            source.start()
            wait_for(lambda: "another disk" in trouble(server), "it to be noticed", PATIENCE_S)


def test_a_source_that_is_away_at_the_start_is_told_and_asked_when_it_comes(tmp_path: Path) -> None:
    with moving(tmp_path, ours) as (source, _):
        with proxy(tmp_path, uri(source), "background=off") as server:
            server.connect().pread(4096, 0)
        source.kill()
        with proxy(tmp_path, uri(source), "background=off") as server:
            wait_for(lambda: "nothing more is known" in trouble(server), "the failure", PATIENCE_S)
            source.start()  # it keeps no maps, so it doesn't know any more that the disk has moved
            wait_for(lambda: trouble(server) == "None", "the source to be asked", PATIENCE_S)
            answer = Source(Endpoint(uri(source))).call("identify")
            assert answer["moved"]


def test_a_source_that_refuses_to_be_sealed_again_is_not_read_and_ends_nothing(
    tmp_path: Path,
) -> None:
    refuses = tmp_path / "refuses"

    def stubborn(image: Path, _maps: Path) -> list[str]:
        wrong = mistaken(
            tmp_path,
            "from pathlib import Path\nfrom relocator.errors import StateError\n"
            "from relocator.running.handover import Handover\n\n"
            "def refuse(self, token=None, asked=False):\n"
            "    raise StateError('no, never')\n\n"
            f"if Path({str(refuses)!r}).exists():\n"
            "    Handover.seal = refuse\n",
        )
        return ["python", str(wrong), f"disk={image}"]

    with moving(tmp_path, stubborn) as (source, _):
        more = ("background=off", "readahead=0", "retry-timeout=1")
        with proxy(tmp_path, uri(source), *more) as server:
            handle = server.connect()
            data = handle.pread(4096, 0)
            source.kill()
            refuses.touch()
            source.start()
            wait_for(lambda: "the source refused 'seal'" in trouble(server), "that", PATIENCE_S)
            with pytest.raises(nbd.Error, match="EIO"):
                handle.pread(4096, 1 << 20)
            assert handle.pread(4096, 0) == data
            assert server.process.poll() is None


def test_a_source_that_refuses_to_say_who_it_is_ends_no_proxy_that_stands_by(
    tmp_path: Path,
) -> None:
    refuses = tmp_path / "refuses"

    def secretive(image: Path, maps: Path) -> list[str]:
        wrong = mistaken(
            tmp_path,
            "from pathlib import Path\nfrom relocator.errors import StateError\n"
            "from relocator.running.handover import Handover\n"
            "known = Handover.identify\n\n"
            "def refuse(self):\n"
            f"    if Path({str(refuses)!r}).exists():\n"
            "        raise StateError('not you')\n"
            "    return known(self)\n\n"
            "Handover.identify = refuse\n",
        )
        return ["python", str(wrong), f"disk={image}", f"store={maps}"]

    with moving(tmp_path, secretive) as (source, _):
        keys = ("mode=standby", "rate=1M", "refresh=off")
        with proxy(tmp_path, uri(source), *keys) as server:
            wait_for(lambda: server.status()["present_blocks"], "some of the copy ahead")
            source.kill()
            refuses.touch()
            source.start()
            wait_for(lambda: "refused 'identify': not you" in trouble(server), "that", PATIENCE_S)
            assert server.process.poll() is None
            refuses.unlink()
            wait_for(lambda: trouble(server) == "None", "the source to say it", PATIENCE_S)
            server.hurry()
            server.control.call("activate", wait=True)
            server.wait(PATIENCE_S)
            source.kill()
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


@pytest.mark.parametrize("size_bytes", [SIZE_BYTES // 2, 2 * SIZE_BYTES])
def test_a_disk_of_another_size_that_answers_first_is_not_believed(
    tmp_path: Path, size_bytes: int
) -> None:
    """Of a source that is no relocator nothing else is known in standby."""
    model = source_bytes(SIZE_BYTES)
    with moving(tmp_path, foreign) as (source, site):
        (tmp_path / "2.img").write_bytes(bytes(size_bytes))
        more = ("mode=standby", "background=off", "readahead=0", "retry-timeout=1")
        with proxy(tmp_path, uri(source), *more) as server:
            server.connect().pread(4096, 0)
        source.kill()
        with proxy(tmp_path, uri(source), *more) as server:
            site.show(2)
            source.start()
            wait_for(lambda: "another disk" in trouble(server), "it to be noticed", PATIENCE_S)
            server.control.call("activate", wait=True)
            with pytest.raises(nbd.Error, match="Input/output error"):
                server.connect().pread(4096, 0)
            source.kill()
            site.show(1)
            source.start()
            wait_for(lambda: trouble(server) == "None", "the right one", PATIENCE_S)
            server.control.call("set", background="on")
            server.wait(PATIENCE_S)
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_a_target_that_forgot_its_seal_is_sealed_again(tmp_path: Path) -> None:
    with moving(tmp_path, ours) as (source, _):
        with proxy(tmp_path, uri(source), "background=off") as server:
            server.connect().pread(4096, 0)
            source.kill()
            source.start()
            wait_for(lambda: server.status()["source_connected"], "the source", PATIENCE_S)
            guest = nbd.NBD()
            guest.connect_tcp("127.0.0.1", str(source.port))
            with pytest.raises(nbd.Error, match="EPERM"):
                guest.pwrite(b"x", 0)
            guest.shutdown()


def test_another_disk_is_not_noted_as_what_the_source_is_known_by(tmp_path: Path) -> None:
    """Of a source that stands still since the switch nothing is known but what was fetched."""
    store = tmp_path / "store"
    with moving(tmp_path, foreign) as (source, site):
        keys = (uri(source), "background=off", "readahead=0", "retry-timeout=1")
        with proxy(tmp_path, *keys) as server:
            server.connect().pread(4096, 0)
        source.kill()
        known = metadata.read(store)
        assert known is not None
        metadata.write(store, replace(known, origin_samples=None))
        with proxy(tmp_path, *keys) as server:
            site.show(2)
            source.start()
            wait_for(lambda: looked_at(server, store), "it to be looked at", PATIENCE_S)
            source.kill()
            site.show(1)
            source.start()
            wait_for(lambda: trouble(server) == "None", "the right", PATIENCE_S)
            assert metadata.read(store).origin_samples == known.origin_samples
            server.control.call("set", background="on")
            server.wait(PATIENCE_S)
    assert (store / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_what_is_silent_is_not_taken_for_what_can_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moving(tmp_path, foreign) as (source, _):
        with connected(Endpoint(uri(source))) as handle:
            monkeypatch.setattr(identity, "read_many", partial(read_many, timeout_s=0.3))
            source.signal(signal.SIGSTOP)
            with pytest.raises(UpstreamError, match="no answer within"):
                samples(handle)
            source.signal(signal.SIGCONT)


def test_a_disk_of_which_nothing_can_be_read_is_known_by_nothing(tmp_path: Path) -> None:
    failing = ["--filter=error", "memory", "4M", "error-pread=EIO", "error-pread-rate=100%"]
    with nbdkit(tmp_path, "source", failing) as source:
        with pytest.raises(UpstreamError, match="can't read any of the places"):
            samples(source.connect())


def test_a_verdict_is_not_believed_of_what_is_another_disk_by_then(tmp_path: Path) -> None:
    class Guarding:
        def __init__(self, *refuses: bool) -> None:
            self._refuses = iter(refuses)

        def check(self, _handle: Any) -> None:
            if next(self._refuses):
                raise OtherDiskError("another disk")

    with moving(tmp_path, foreign) as (source, _):
        endpoint, read = Endpoint(uri(source)), ask_one(0, 4096, SIZE_BYTES)
        with pytest.raises(OtherDiskError):
            Upstream(endpoint, 1.0, guard=Guarding(False, True)).serve(read)
        read = ask_one(0, 4096, SIZE_BYTES)
        found = Upstream(endpoint, 1.0, guard=Guarding(False, False)).serve(read)
        assert found == source_bytes(SIZE_BYTES)[:4096]


def looked_at(server: Server, store: Path) -> bool:
    """Whether what answers was noted, or found to be another disk."""
    known = metadata.read(store)
    assert known is not None
    return known.origin_samples is not None or "lacks what was fetched" in trouble(server)


@pytest.mark.parametrize("kind", [ours, ours_with_store], ids=lambda k: k.__name__)
def test_digests_of_another_disk_are_not_believed(
    tmp_path: Path, kind: Argv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are those of the same disk taken for another's: the samples are not of the digests."""
    monkeypatch.setattr(digests, "PATIENCE_S", 3.0)
    units = SIZE_BYTES >> 18
    with moving(tmp_path, kind) as (source, site):
        endpoint = Endpoint(uri(source))
        store = make_store(tmp_path / "store", SIZE_BYTES)
        with store.lock:
            store.mark_present_locked(0, 1)
        answer = Source(endpoint).identify()
        assert answer is not None
        store.update(origin_id=answer["id"], origin_samples=samples_at(endpoint))

        def ask() -> Request:
            source.kill()
            source.start()
            asked = digests.Digests(endpoint, 1 << 18, Guard(store, endpoint, aside=True))
            asked.start()
            answers: queue.Queue[Request] = queue.Queue()
            asked.ask(0, units, answers.put)
            found = answers.get(timeout=PATIENCE_S)
            asked.close()
            return found

        same = ask()
        assert same.error is None
        model = source_bytes(SIZE_BYTES)
        assert same.data == b"".join(
            digests.digest(model[at : at + (1 << 18)]) for at in range(0, SIZE_BYTES, 1 << 18)
        )
        site.show(2)
        other = ask()
        assert "another disk" in str(other.error)
        assert not other.data
        store.close()
