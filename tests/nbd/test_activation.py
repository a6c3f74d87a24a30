"""A disk is taken over while its guest goes on: reads at once, writes once the source is sealed."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.errors import RelocatorError
from tests.support.model import source_bytes
from tests.support.servers import PLUGIN, Server, mistaken, plugin, wait_for

SIZE_BYTES = 2 << 20
BLOCK = 4096

#: the source seals, or answers that it has, only once a file is there
_SLOW_SEAL = """
import time as _time
from relocator.running.lifecycle import Lifecycle as _Lifecycle
_seal = _Lifecycle.seal
def _slow(self, *arguments, **more):
    {before}
    while not Path({go!r}).exists():
        _time.sleep(0.01)
    {after}
_Lifecycle.seal = _slow
"""

#: a file shows when a failed activation's way back has come to its end
_WAY_BACK_TELLS = """
from relocator.running.activation import Activation as _Activation
_later = _Activation._give_back_later
def _tell(self):
    _later(self)
    Path({ended!r}).touch()
_Activation._give_back_later = _tell
"""

#: once a file is there, a withdrawal comes just as an activation has looked for what is owed
_AT_ONCE = """
import time as _time
from relocator.running.activation import Activation as _Activation
_see, _give_back = _Activation._see_given_back_locked, _Activation._give_back
def _look(self):
    _see(self)
    if Path({both!r}).exists():
        Path({looked!r}).touch()
        give_up_s = _time.monotonic() + 2
        while self._lifecycle.state != "standby" and _time.monotonic() < give_up_s:
            _time.sleep(0.01)
def _late(self):
    _time.sleep(1 if Path({both!r}).exists() else 0)
    _give_back(self)
_Activation._see_given_back_locked, _Activation._give_back = _look, _late
"""


class Source:
    """The site where the disk is."""

    def __init__(self, directory: Path, name: str = "source") -> None:
        self.directory = directory / name
        self.directory.mkdir()
        self.content = source_bytes(SIZE_BYTES)
        self.image = self.directory / "disk.img"
        self.image.write_bytes(self.content)
        self._go = self.directory / "go"

    def serve(self, *, slow: str | None = None) -> Any:
        """Its target; `slow`: `sealing`, or `answering`, until `go_on`."""
        keys = (f"disk={self.image}", f"store={self.directory / 'maps'}")
        # as `relocator target` does: nbdkit may not outlive a client that it owes several
        one = ("-t", "1")
        if slow is None:
            return plugin(self.directory, "target", *keys, flags=one)
        seal = "_seal(self, *arguments, **more)"
        before, after = ("pass", seal) if slow == "sealing" else (seal, "pass")
        mistake = _SLOW_SEAL.format(go=str(self._go), before=before, after=after)
        file = mistaken(self.directory, mistake)
        return plugin(self.directory, "target", *keys, flags=one, file=file)

    def go_on(self) -> None:
        self._go.touch()

    @property
    def sealed(self) -> bool:
        """Whether the seal is durable."""
        return json.loads((self.directory / "maps" / "meta.json").read_text())["seal"] is not None


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


@contextmanager
def standby(directory: Path, target: Server, *keys: str, file: Path = PLUGIN) -> Iterator[Server]:
    """A proxy that copies nothing ahead, unless `keys` say so."""
    wanted = (f"store={directory / 'store'}", f"source={target.uri}", "mode=standby")
    background = () if any(key.startswith("background") for key in keys) else ("background=off",)
    with plugin(directory, "proxy", *wanted, *background, *keys, file=file) as server:
        try:
            yield server
        except BaseException:
            server.kill()  # its clients may wait for ever
            raise


@pytest.fixture
def guest() -> Iterator[Callable[..., Future[Any]]]:
    """Requests whose answers may take a while."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def waits(request: Future[Any]) -> bool:
    return not wait([request], timeout=0.3).done


def state(server: Server) -> str:
    return str(server.control.call("status")["state"])


def until(server: Server, wanted: str) -> None:
    wait_for(lambda: state(server) == wanted, f"the state {wanted}")


def test_reads_go_on_and_writes_wait_until_the_seal_is_durable(
    tmp_path: Path, source: Source, guest: Any
) -> None:
    with source.serve(slow="sealing") as target, standby(tmp_path, target) as proxy:
        before = (tmp_path / "store" / "disk.img").read_bytes()
        assert proxy.control.call("activate")["state"] == "activating"
        writer, reader = proxy.connect(), proxy.connect()
        written = guest(writer.pwrite, b"mine", 8)
        assert reader.pread(SIZE_BYTES, 0) == source.content
        assert waits(written)
        assert not source.sealed
        assert (tmp_path / "store" / "disk.img").read_bytes() == before
        source.go_on()
        written.result(30)
        assert source.sealed
        assert state(proxy) == "active"
        assert reader.pread(16, 0) == source.content[:8] + b"mine" + source.content[12:16]
    assert source.image.read_bytes() == source.content


def test_a_hold_lasts_until_the_release(tmp_path: Path, source: Source, guest: Any) -> None:
    with source.serve() as target, standby(tmp_path, target) as proxy:
        status = proxy.control.call("activate", hold=True, wait=True)
        assert (status["state"], status["held"], status["seal_confirmed"]) == (
            "activating",
            True,
            True,
        )
        written = guest(proxy.connect().pwrite, b"mine", 0)
        assert waits(written)
        assert not target.control.call("identify")["moved"]
        proxy.control.call("release")
        written.result(30)
        wait_for(lambda: target.control.call("identify")["moved"], "the source to be told")
        assert not proxy.control.call("release")["held"]  # again: nothing changes


@pytest.mark.parametrize("hold", [True, False])
def test_what_is_withdrawn_goes_on_at_the_source_and_can_be_taken_over_again(
    tmp_path: Path, source: Source, guest: Any, hold: bool
) -> None:
    with source.serve() as target, standby(tmp_path, target, "background=on", "rate=1M") as proxy:
        there, here = target.connect(), proxy.connect()
        proxy.control.call("activate", hold=hold, wait=True)
        half = SIZE_BYTES // 2
        assert here.pread(half, 0) == source.content[:half]  # once it is active, this is kept
        if not hold:
            wait_for(lambda: target.control.call("identify")["moved"], "the source to be told")
        resumed = guest(there.pwrite, b"source's", 3 * BLOCK)  # a guest that didn't move after all
        if hold:
            assert waits(resumed)
        assert proxy.control.call("withdraw")["state"] == "standby"
        if hold:
            resumed.result(30)
        else:  # it has been told that it moved
            with pytest.raises(nbd.Error, match="EPERM"):
                resumed.result(30)
            there.pwrite(b"source's", 3 * BLOCK)
        there.pwrite(b"more", SIZE_BYTES - BLOCK)
        source.content[3 * BLOCK : 3 * BLOCK + 8] = b"source's"
        source.content[-BLOCK : 4 - BLOCK] = b"more"
        with pytest.raises(nbd.Error, match="EPERM"):
            here.pwrite(b"not here", 0)
        assert here.pread(SIZE_BYTES, 0) == source.content
        proxy.control.call("activate", wait=True)
        here.pwrite(b"mine", 0)
        proxy.hurry()
        proxy.control.call("wait", timeout_s=60)
        assert here.pread(SIZE_BYTES, 0) == b"mine" + source.content[4:]
    assert source.image.read_bytes() == source.content


def test_who_waits_for_an_activation_is_told_that_it_was_withdrawn(
    tmp_path: Path, source: Source, guest: Any
) -> None:
    with source.serve(slow="sealing") as target, standby(tmp_path, target) as proxy:
        waiting = guest(proxy.control.call, "activate", wait=True)
        until(proxy, "activating")
        withdrawing = guest(proxy.control.call, "withdraw")
        with pytest.raises(RelocatorError, match="was withdrawn meanwhile"):
            waiting.result(30)
        source.go_on()
        withdrawing.result(30)
        assert state(proxy) == "standby"


def test_a_disk_that_was_written_here_is_not_given_back(tmp_path: Path, source: Source) -> None:
    with source.serve() as target, standby(tmp_path, target) as proxy:
        proxy.control.call("activate", wait=True)
        here = proxy.connect()
        here.pwrite(b"mine", 0)
        with pytest.raises(RelocatorError, match="1 blocks were written here"):
            proxy.control.call("withdraw")
        here.pwrite(b"more", BLOCK)
        assert (state(proxy), state(target)) == ("active", "sealed")


def test_a_source_that_cannot_be_sealed_fails_the_writes_and_nothing_is_written(
    tmp_path: Path, source: Source, guest: Any
) -> None:
    with source.serve(slow="answering") as target:
        with standby(tmp_path, target, "retry-timeout=1") as proxy:
            before = (tmp_path / "store" / "disk.img").read_bytes()
            proxy.control.call("activate")
            written = guest(proxy.connect().pwrite, b"mine", 0)
            wait_for(lambda: source.sealed, "the seal")
            target.kill()  # sealed it is, and nobody has heard of it
            with pytest.raises(nbd.Error, match="EPERM"):
                written.result(30)
            status = proxy.control.call("status")
            assert (status["state"], status["present_blocks"]) == ("standby", 0)
            assert "the disk was not taken over" in status["error"]
            assert (tmp_path / "store" / "disk.img").read_bytes() == before
            with source.serve() as again:
                wait_for(lambda: state(again) == "complete", "the seal to be undone")
                again.connect().pwrite(b"at home", 0)
                source.content[:7] = b"at home"
                wait_for(lambda: proxy.status()["source_connected"], "the source")
                assert proxy.connect().pread(BLOCK, 0) == source.content[:BLOCK]
                again.kill()  # rather than to wait for its client


def test_a_seal_whose_answer_is_lost_is_asked_for_again(
    tmp_path: Path, source: Source, guest: Any
) -> None:
    with source.serve(slow="answering") as target, standby(tmp_path, target) as proxy:
        proxy.control.call("activate")
        written = guest(proxy.connect().pwrite, b"mine", 0)
        wait_for(lambda: source.sealed, "the seal")
        target.kill()
        with source.serve() as again:
            written.result(30)
            assert state(proxy) == "active"
            again.kill()  # rather than to wait for its client


def test_a_killed_proxy_goes_on_with_its_activation(tmp_path: Path, source: Source) -> None:
    with source.serve(slow="sealing") as target:
        with standby(tmp_path, target) as proxy:
            proxy.control.call("activate")
            proxy.kill()
        source.go_on()
        with standby(tmp_path, target) as proxy:
            here = proxy.connect()
            here.pwrite(b"mine", 0)
            assert here.pread(SIZE_BYTES, 0) == b"mine" + source.content[4:]


def test_a_killed_proxy_that_was_held_seals_nothing_before_its_release(
    tmp_path: Path, source: Source, guest: Any
) -> None:
    with source.serve() as target:
        with standby(tmp_path, target) as proxy:
            proxy.control.call("activate", hold=True, wait=True)
            proxy.kill()
        target.control.call("unseal", force=True)  # it was given up: the guest goes on at home
        target.connect().pwrite(b"at home", 0)
        source.content[:7] = b"at home"
        with standby(tmp_path, target) as proxy:
            here = proxy.connect()
            written = guest(here.pwrite, b"mine", BLOCK)
            assert waits(written)
            assert (state(proxy), source.sealed) == ("activating", False)
            proxy.control.call("release")
            with pytest.raises(nbd.Error, match="EPERM"):  # of an activation that is given up
                written.result(30)
            wait_for(lambda: not proxy.control.call("identify")["withdrawn"], "the source's word")
            proxy.control.call("activate")
            here.pwrite(b"mine", BLOCK)
            source.content[BLOCK : BLOCK + 4] = b"mine"
            assert here.pread(SIZE_BYTES, 0) == source.content


def test_a_withdrawal_that_the_source_did_not_hear_is_told_it_later(
    tmp_path: Path, source: Source
) -> None:
    with source.serve() as target, standby(tmp_path, target) as proxy:
        proxy.control.call("activate", hold=True, wait=True)
        target.kill()
        with pytest.raises(RelocatorError, match="withdrawn here, but the source can't be told"):
            proxy.control.call("withdraw")
        assert state(proxy) == "standby"
        proxy.kill()
        with source.serve() as again:
            assert state(again) == "sealed"
            with standby(tmp_path, target):
                until(again, "complete")


def test_what_a_withdrawal_owes_is_not_forgotten_for_an_activation_that_comes_at_once(
    tmp_path: Path, source: Source, guest: Any
) -> None:
    both, looked = tmp_path / "both", tmp_path / "looked"
    file = mistaken(tmp_path, _AT_ONCE.format(both=str(both), looked=str(looked)))
    with source.serve() as target:
        with standby(tmp_path, target) as proxy:
            proxy.control.call("activate", wait=True)
            wait_for(lambda: target.control.call("identify")["moved"], "the source to be told")
            proxy.kill()  # the next one gives its seals other names
        with standby(tmp_path, target, file=file) as proxy:
            both.touch()
            begins = guest(proxy.control.call, "activate")
            wait_for(looked.exists, "the activation")
            ends = guest(proxy.control.call, "withdraw")
            begins.result(30)
            ends.result(30)
            both.unlink()
            proxy.control.call("withdraw")
            until(target, "complete")


def test_what_is_armed_again_is_not_undone_for_what_failed_before(
    tmp_path: Path, source: Source
) -> None:
    ended = tmp_path / "ended"
    file = mistaken(tmp_path, _WAY_BACK_TELLS.format(ended=str(ended)))
    with source.serve() as target:
        with standby(tmp_path, target, "retry-timeout=1", file=file) as proxy:
            target.kill()
            with pytest.raises(RelocatorError, match="the disk was not taken over"):
                proxy.control.call("activate", wait=True)
            with source.serve():
                proxy.control.call("activate", hold=True, seal=False)
                wait_for(ended.exists, "the first failure's way back to end", 60)
                assert (state(proxy), proxy.status()["held"]) == ("activating", True)
                proxy.control.call("withdraw")
                proxy.kill()  # the source would wait for it to go


def test_what_failed_before_is_told_until_the_next_activation(
    tmp_path: Path, source: Source
) -> None:
    with source.serve() as target, standby(tmp_path, target, "retry-timeout=1") as proxy:
        target.kill()
        with pytest.raises(RelocatorError, match="the disk was not taken over"):
            proxy.control.call("activate", wait=True)
        with source.serve():
            wait_for(lambda: not proxy.control.call("identify")["withdrawn"], "the source's word")
            assert "the disk was not taken over" in proxy.status()["error"]
            armed = proxy.control.call("activate", hold=True, seal=False)
            assert (armed["state"], armed["error"]) == ("activating", None)
            proxy.control.call("activate", wait=True)
            proxy.kill()  # the source would wait for it to go


def test_wrong_arguments_are_named(tmp_path: Path, source: Source) -> None:
    with source.serve() as target, standby(tmp_path, target) as proxy:
        with pytest.raises(RelocatorError, match="hold=1: of 'activate' must be true or false"):
            proxy.control.call("activate", hold=1)
        with pytest.raises(RelocatorError, match="for another site's relocator only"):
            target.control.call("withdrawn")
        assert state(proxy) == "standby"
