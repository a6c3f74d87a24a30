"""A seal undone without the proxy's word: by force only, and the proxy finds out at contact."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import nbd
import pytest

from relocator.cli.main import main
from relocator.errors import RelocatorError
from tests.nbd.test_activation import BLOCK, Source, state, until
from tests.support.command import relocator
from tests.support.relay import Relay, relay
from tests.support.servers import PLUGIN, Server, mistaken, plugin, refused, wait_for
from tests.support.sites import three

FOUND_S = 60.0
#: whole, since a part of an absent block needs the source
MINE = b"mine" * (BLOCK // 4)
#: kills its process when metadata are about to be written that say so, or once they have been
_DIES = """
import os as _os, signal as _signal
from relocator.store.store import Store as _Store
_update = _Store.update
def _dying(self, **changes):
    fatal = changes.get({field!r}, {value!r} is None) == {value!r} and {field!r} in changes
    if fatal and {before!r}:
        _os.kill(_os.getpid(), _signal.SIGKILL)
    _update(self, **changes)
    if fatal:
        _os.kill(_os.getpid(), _signal.SIGKILL)
_Store.update = _dying
"""


class Sites:
    """A source and a proxy, and a link between them."""

    def __init__(self, directory: Path) -> None:
        self.source = Source(directory)
        self.directory = directory
        self.link: Relay

    @contextmanager
    def linked(self) -> Iterator["Sites"]:
        """For as long as the link may be whole."""
        to = self.source.directory / "target.sock"
        with relay(self.directory / "link.sock", to) as self.link:
            yield self

    def target(self, file: Path = PLUGIN) -> Any:
        directory = self.source.directory
        keys = (f"disk={self.source.image}", f"store={directory / 'maps'}")
        return plugin(directory, "target", *keys, flags=("-t", "1"), file=file)

    def proxy(self, *keys: str, file: Path = PLUGIN) -> Any:
        wanted = (f"store={self.directory / 'store'}", f"source={self.link.uri}", "mode=standby")
        more = () if any(key.startswith("background") for key in keys) else ("background=off",)
        return plugin(self.directory, "proxy", *wanted, *more, *keys, file=file)

    def cut_after_activation(self, proxy: Server) -> Any:
        """The proxy becomes active, and its source doesn't hear of that; its guest's handle."""
        proxy.control.call("activate", hold=True, wait=True)
        self.link.cut()
        proxy.control.call("release")
        until(proxy, "active" if not all_here(proxy) else "complete")
        here = proxy.connect()
        here.pwrite(MINE, 0)
        return here


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    with Sites(tmp_path).linked() as found:
        yield found


def all_here(server: Server) -> bool:
    status = server.status()
    return bool(status["present_blocks"] == status["total_blocks"])


def refuses_writes(handle: Any) -> bool:
    with pytest.raises(nbd.Error, match="EPERM"):
        handle.pwrite(MINE, 8 * BLOCK)
    return True


def outdated(proxy: Server) -> None:
    wait_for(lambda: state(proxy) == "outdated", "the proxy to find out", FOUND_S)


def test_a_cut_right_after_the_activation_leaves_one_site_that_writes(
    sites: Sites, capsys: pytest.CaptureFixture[str]
) -> None:
    with sites.target() as target, sites.proxy() as proxy:
        here = sites.cut_after_activation(proxy)
        control = str(target.control_path)
        assert main(["unseal", control]) == 1
        said = capsys.readouterr().err
        assert "may be active with the disk" in said and "--force" in said
        target.kill()
        with sites.target() as again:
            with pytest.raises(RelocatorError, match="a proxy has asked for this seal"):
                again.control.call("unseal")
            assert main(["unseal", "--force", control]) == 0
            assert "is not on this disk" in capsys.readouterr().out
            there = again.connect()
            there.pwrite(b"source's", BLOCK)
            here.pwrite(MINE, 2 * BLOCK)  # nobody can have told it yet
            sites.link.mend()
            outdated(proxy)
            assert refuses_writes(here)
            assert here.pread(4, 2 * BLOCK) == b"mine"
            status = proxy.status()
            assert "unsealed by force" in status["error"]
            assert "unsealed by force" in proxy.log.read_text()
            assert main(["wait", str(proxy.control_path)]) == 1
            there.pwrite(b"source's", 3 * BLOCK)
            assert there.pread(4, 0) != b"mine"
            proxy.kill()
            with sites.proxy() as restarted:
                assert state(restarted) == "outdated"
                assert refuses_writes(restarted.connect())
                assert "unsealed by force" in str(restarted.status()["error"])
            assert state(again) == "complete"


def test_what_was_written_after_a_forced_unseal_is_never_read_through_an_older_connection(
    sites: Sites,
) -> None:
    with sites.target() as target:
        there, reader = target.connect(), target.connect()
        there.pwrite(b"before", 4 * BLOCK)
        with sites.proxy("retry-timeout=2") as proxy:
            proxy.control.call("activate", wait=True)
            here = proxy.connect()
            here.pwrite(MINE, 0)
            wait_for(lambda: target.control.call("identify")["moved"], "the source to be told")
            with pytest.raises(RelocatorError, match="a proxy is active with this disk"):
                target.control.call("unseal")
            target.control.call("unseal", force=True)
            there.pwrite(b"behind", 4 * BLOCK)  # who has written goes on
            with pytest.raises(nbd.Error, match=r"ESHUTDOWN|shutdown"):
                reader.pread(BLOCK, 4 * BLOCK)
            with pytest.raises(nbd.Error):
                here.pread(BLOCK, 4 * BLOCK)
            outdated(proxy)
            with pytest.raises(nbd.Error):
                here.pread(BLOCK, 4 * BLOCK)
            assert here.pread(4, 0) == b"mine"
            assert target.connect().pread(6, 4 * BLOCK) == b"behind"


def test_a_proxy_that_has_no_block_yet_believes_none_of_a_source_unsealed_meanwhile(
    sites: Sites,
) -> None:
    with sites.target() as target:
        with sites.proxy() as proxy:
            proxy.control.call("activate", hold=True, wait=True)
            sites.link.cut()
            proxy.control.call("release")
            until(proxy, "active")
            proxy.kill()
        target.control.call("unseal", force=True)
        target.connect().pwrite(b"behind", 4 * BLOCK)
        with sites.proxy() as proxy:
            here = proxy.connect()
            sites.link.mend()
            with pytest.raises(nbd.Error):
                here.pread(BLOCK, 4 * BLOCK)
            outdated(proxy)


def test_a_proxy_that_is_complete_and_could_not_say_so_finds_out_too(sites: Sites) -> None:
    with sites.target() as target:
        with sites.proxy("background=on", "refresh=off") as proxy:
            wait_for(lambda: all_here(proxy), "the copy ahead")
            sites.cut_after_activation(proxy)
            target.control.call("unseal", force=True)
            proxy.kill()
        sites.link.mend()
        with sites.proxy() as proxy:
            outdated(proxy)
            here = proxy.connect()
            assert refuses_writes(here)
            assert here.pread(2 * BLOCK, 0) == MINE + sites.source.content[BLOCK : 2 * BLOCK]
            with pytest.raises(RelocatorError, match="outdated"):
                proxy.wait()


def test_a_complete_proxy_that_told_its_source_learns_of_no_force_and_is_never_mixed_with_it(
    sites: Sites,
) -> None:
    with sites.target() as target:
        with sites.proxy("background=on", "refresh=off") as proxy:
            proxy.control.call("activate", wait=True)
            proxy.wait()
            wait_for(lambda: target.control.call("identify")["moved"], "the source to be told")
            told = target.control.call("unseal", force=True)
            assert told["was_asked"] and told["was_moved"]
        with sites.proxy() as proxy:
            assert state(proxy) == "complete"
            proxy.connect().pwrite(MINE, 0)
            target.connect().pwrite(b"source's", 0)
            target.control.call("seal")
            target.kill()
            keys = (f"disk={sites.source.image}", f"store={sites.source.directory / 'maps'}")
            said = refused(*keys, f"source={proxy.uri}", "mode=standby")
            assert "is not the successor of the sealed disk" in said


def test_a_hold_that_outlasts_its_seal_is_found_out_at_the_release(sites: Sites) -> None:
    with sites.target() as target, sites.proxy() as proxy:
        proxy.control.call("activate", hold=True, wait=True)
        target.control.call("unseal", force=True)
        target.connect().pwrite(b"at home", 0)
        proxy.control.call("release")
        outdated(proxy)
        assert refuses_writes(proxy.connect())
        assert state(target) == "complete"


def test_the_site_behind_an_outdated_one_is_outdated_too(sites: Sites, tmp_path: Path) -> None:
    last = tmp_path / "last"
    last.mkdir()
    often = mistaken(last, "from relocator.running import afterwards\nafterwards.AGAIN_S = 1.0")
    with sites.target() as target, sites.proxy(file=often) as middle:
        middle.control.call("activate", wait=True)
        keys = (f"store={last / 'store'}", f"source={middle.uri}", "background=off")
        with plugin(last, "proxy", *keys, "retry-timeout=2", file=often) as end:
            end.connect().pwrite(MINE, 0)
            target.control.call("unseal", force=True)
            with suppress(nbd.Error):
                end.connect().pread(BLOCK, 5 * BLOCK)
            outdated(middle)
            with suppress(nbd.Error):
                end.connect().pread(BLOCK, 5 * BLOCK)
            outdated(end)


def test_a_source_that_had_the_disk_back_before_is_found_out_all_the_same(tmp_path: Path) -> None:
    """It still names the other site as the one that its copy was taken from."""
    a, b, _ = three(tmp_path)
    often = mistaken(tmp_path, "from relocator.running import afterwards\nafterwards.AGAIN_S = 1.0")
    home = (f"disk={a.image}", f"store={a.maps}")
    with ExitStack() as running:
        first = running.enter_context(a.target())
        away = running.enter_context(b.proxy(first))
        away.wait()
        wait_for(lambda: first.control.call("identify")["moved"], "the source to be told")
        first.kill()
        back = running.enter_context(
            plugin(a.directory, "target", *home, f"source={away.uri}", flags=("-t", "4"))
        )
        back.connect().pwrite(MINE, 0)
        back.wait()
        wait_for(lambda: away.control.call("identify")["moved"], "the other to be told")
        away.kill()
        keys = (f"store={b.directory / 'store'}", f"source={back.uri}", "mode=standby")
        again = running.enter_context(
            plugin(b.directory, "proxy", *keys, "background=off", file=often)
        )
        again.control.call("activate", wait=True)
        here = again.connect()
        here.pwrite(MINE, 4 * BLOCK)
        back.control.call("unseal", force=True)
        outdated(again)
        assert refuses_writes(here)


def test_the_word_of_the_proxy_undoes_its_seal_and_no_other(sites: Sites) -> None:
    with sites.target() as target, sites.proxy() as proxy:
        proxy.control.call("activate", hold=True, wait=True)
        sites.link.cut()
        with pytest.raises(RelocatorError, match="withdrawn here, but the source can't be told"):
            proxy.control.call("withdraw")
        word = proxy.control.call("identify")["withdrawn"]
        for wrong in ({"withdrawn": 3}, {"withdrawn": word, "force": True}, {"force": 1}):
            with pytest.raises(RelocatorError, match="must be"):
                target.control.call("unseal", **wrong)
        assert not target.control.call("unseal", withdrawn="0" * 32)["unsealed"]
        assert target.control.call("unseal", withdrawn=word)["unsealed"]
        target.connect().pwrite(b"at home", 0)


def test_who_unseals_by_force_is_told_what_is_known_of_the_proxy(sites: Sites) -> None:
    with sites.target() as target, sites.proxy() as proxy:
        unseal = ("unseal", "--force", str(target.control_path))
        proxy.control.call("activate", hold=True, wait=True)
        may_be = relocator(*unseal).stdout
        assert "may have been active; if so, what was written there since is not on this" in may_be
        proxy.control.call("withdraw")
        proxy.control.call("activate")
        wait_for(lambda: target.control.call("identify")["moved"], "the source to be told")
        was = relocator(*unseal).stdout
        assert "was active: what was written there since is not on this disk" in was


def test_a_seal_that_nobody_asked_for_is_undone_as_before(sites: Sites) -> None:
    with sites.target() as target:
        target.control.call("seal")
        assert not target.control.call("unseal")["was_asked"]
        target.connect().pwrite(b"at home", 0)


@pytest.mark.parametrize("before", [True, False], ids=("before", "after"))
@pytest.mark.parametrize("who", ["asks", "unseals", "becomes active", "finds out"])
def test_killed_at_any_point_no_two_sites_go_on_writing(
    sites: Sites, who: str, before: bool
) -> None:
    field, value = {
        "asks": ("asked", True),
        "unseals": ("seal", None),
        "becomes active": ("untold", True),
        "finds out": ("outdated", True),
    }[who]
    wrong = mistaken(sites.directory, _DIES.format(field=field, value=value, before=before))
    at_source = who in ("asks", "unseals")
    with sites.target(wrong if at_source else PLUGIN) as target:
        with sites.proxy(file=PLUGIN if at_source else wrong) as proxy:
            with suppress(RelocatorError):
                proxy.control.call("activate", hold=True, wait=who != "asks")
                if who == "asks":
                    target.process.wait(30)
                sites.link.cut()
                proxy.control.call("release")
                if who == "becomes active":
                    proxy.process.wait(30)
            with suppress(RelocatorError):
                target.control.call("unseal", force=True)
            sites.link.mend()
            if who == "finds out":
                proxy.process.wait(30)
            elif who != "becomes active":
                target.process.wait(30)
            target.kill()
            proxy.kill()
    with sites.target() as target, sites.proxy() as proxy:
        with suppress(RelocatorError):
            proxy.control.call("release")
        settled = {("sealed", "active"), ("complete", "outdated"), ("complete", "standby")}
        wait_for(lambda: (state(target), state(proxy)) in settled, "one site", FOUND_S)
        here, there = proxy.connect(), target.connect()
        if state(target) == "complete":
            there.pwrite(b"source's", BLOCK)
            assert refuses_writes(here)
        else:
            here.pwrite(MINE, BLOCK)
            wait_for(lambda: target.control.call("identify")["moved"], "the source to be told")
            assert refuses_writes(there)
