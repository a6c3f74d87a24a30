"""Words that come too late, or twice; when the first requests after an activation were answered.

A connection that is cut may deliver what was sent into it long after both sides have gone on.
"""

import re
import time
from pathlib import Path

import pytest

from relocator.cli.main import main
from relocator.errors import RelocatorError, StateError
from relocator.moving.ends import ByControl, ByNbd, SourceEnd
from relocator.source import remote
from relocator.source.endpoint import Endpoint
from tests.nbd.test_activation import Source, standby, state
from tests.support.servers import Server, wait_for


def test_a_seal_that_arrives_after_its_withdrawal_is_refused(tmp_path: Path) -> None:
    source = Source(tmp_path)
    with source.serve() as target, standby(tmp_path, target) as proxy:
        proxy.control.call("activate", hold=True)
        until_sealed = lambda: proxy.control.call("status")["seal_confirmed"]  # noqa: E731
        wait_for(until_sealed, "the seal")
        late = target.control.call("identify")["seal"]
        proxy.control.call("withdraw")
        with pytest.raises(StateError, match="the activation that asks for it was withdrawn"):
            far_end(target).call(f"seal/{late}")
        target.connect().pwrite(b"x", 0)
        target.kill()
    with source.serve() as target:
        with pytest.raises(StateError, match="was withdrawn"):
            far_end(target).call(f"seal/{late}")
        assert state(target) == "complete"


@pytest.mark.parametrize("by_nbd", [False, True])
def test_a_seal_that_was_given_up_before_it_came_is_refused(tmp_path: Path, by_nbd: bool) -> None:
    """By who moves the disk, for its proxy can't be asked."""
    late = "0123456789abcdef" * 2
    with Source(tmp_path).serve() as target:
        end: SourceEnd = ByNbd(target.uri, None) if by_nbd else ByControl(target.control)
        end.unseal(late)
        with pytest.raises(StateError, match="was withdrawn"):
            far_end(target).call(f"seal/{late}")
        assert state(target) == "complete"


def test_a_seal_that_was_withdrawn_while_its_source_stood_by_is_refused_once_that_is_active(
    tmp_path: Path,
) -> None:
    (tmp_path / "third").mkdir()
    with Source(tmp_path).serve() as target, standby(tmp_path, target) as proxy:
        proxy.control.call("activate", wait=True)
        with standby(tmp_path / "third", proxy) as third:
            third.control.call("activate", hold=True, seal=False)
            late = third.control.call("status")["asks_for"]
            proxy.control.call("withdraw")  # the disk goes back from there meanwhile
            third.control.call("withdraw")
            proxy.control.call("activate", wait=True)
            with pytest.raises(StateError, match="was withdrawn"):
                far_end(proxy).call(f"seal/{late}")
            assert state(proxy) == "active"


def test_an_activation_waits_for_word_of_the_withdrawal_before_it(tmp_path: Path) -> None:
    source = Source(tmp_path)
    with source.serve() as target, standby(tmp_path, target, "retry-timeout=1") as proxy:
        proxy.control.call("activate", hold=True, seal=False)
        assert state(target) == "complete"  # not sealed before it is asked to
        target.kill()
        with pytest.raises(RelocatorError, match="the source can't be told"):
            proxy.control.call("withdraw")
        with pytest.raises(RelocatorError, match="nothing was taken over") as refused:
            proxy.control.call("activate", hold=True)
        assert "an earlier activation that failed or was withdrawn is not undone" in str(
            refused.value
        )
        assert not re.search("[0-9a-f]{32}", str(refused.value))  # a seal's name is secret
        assert state(proxy) == "standby"
        with source.serve() as again:
            proxy.control.call("activate", wait=True)
            assert state(proxy) in ("active", "complete")
            again.kill()  # rather than to wait for its client


def test_a_disk_that_is_active_already_may_be_activated_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source(tmp_path)
    with source.serve() as target, standby(tmp_path, target) as proxy:
        control = str(proxy.control_path)
        assert main(["activate", "--wait", control]) == 0
        assert capsys.readouterr().out == ""
        proxy.connect().pwrite(b"mine", 0)
        for again in (["--wait", control], ["--hold", control], [control, control]):
            assert main(["activate", *again]) == 0
            assert f"{control}: is active already\n" in capsys.readouterr().out
        assert (state(proxy), proxy.control.call("status")["held"]) == ("active", False)
        proxy.control.call("set", background="on")
        proxy.wait()
        assert proxy.control.call("activate")["already_active"]
        proxy.connect().pwrite(b"still mine", 0)
        assert main(["activate", str(target.control_path)]) == 1
        assert "'activate' is refused in state 'sealed'" in capsys.readouterr().err


def test_the_first_answers_after_an_activation_are_told(tmp_path: Path) -> None:
    source = Source(tmp_path)

    def told() -> list[float | None]:
        status = proxy.control.call("status")
        return [status["first_read_at_s"], status["first_write_at_s"]]

    with source.serve() as target, standby(tmp_path, target) as proxy:
        guest = proxy.connect()
        guest.pread(4096, 0)
        assert told() == [None, None]
        before_s = time.time()
        proxy.control.call("activate", hold=True, wait=True)
        guest.pread(4096, 0)
        first = told()
        assert first[0] is not None and before_s < first[0] < time.time()
        assert first[1] is None
        proxy.control.call("release")
        guest.pwrite(b"mine", 0)
        first = told()
        assert first[0] is not None and first[1] is not None and first[0] < first[1]
        guest.pread(4096, 0)
        guest.pwrite(b"mine", 0)
        assert told() == first
        assert proxy.control.call("status")["requests"]["write"]["count"] == 2


def test_a_target_is_not_activated(tmp_path: Path) -> None:
    with Source(tmp_path).serve() as target:
        with pytest.raises(RelocatorError, match="'activate' is for a proxy"):
            target.control.call("activate")


def far_end(target: Server) -> remote.Source:
    """What a proxy calls its source by."""
    return remote.Source(Endpoint(target.uri))
