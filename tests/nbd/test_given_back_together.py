"""The disks of one VM are given back together: all or none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relocator import group
from relocator.cli.main import main
from tests.nbd.test_activation import standby, state
from tests.nbd.test_group import two_disks


@pytest.mark.parametrize("written", [0, 1])
def test_no_disk_is_given_back_from_a_vm_that_has_written_to_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], written: int
) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, sources[1].serve() as second:
        with standby(sites[0], first) as one, standby(sites[1], second) as two:
            proxies = (one, two)
            controls = [str(proxy.control_path) for proxy in proxies]
            assert main(["activate", *controls]) == 0
            proxies[written].connect().pwrite(b"the VM runs here", 0)
            proxies[written].control.call("epoch")  # as a third site does that copies ahead
            assert main(["withdraw", *controls]) == 1
            said = capsys.readouterr().err
            assert (
                f"{controls[written]}: active, it was taken over ('withdraw' is refused: " in said
            )
            assert (
                f"{controls[1 - written]}: active, it was taken over (left as it was: all" in said
            )
            assert (state(one), state(two)) == ("active", "active")
            proxies[1 - written].connect().pwrite(b"to its second disk", 0)


def test_what_nobody_has_written_is_given_back_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, sources[1].serve() as second:
        with standby(sites[0], first) as one, standby(sites[1], second) as two:
            controls = [str(one.control_path), str(two.control_path)]
            for how in ([], ["--hold"]):
                assert main(["activate", *how, *controls]) == 0
                assert main(["withdraw", *controls]) == 0
                assert (state(one), state(two)) == ("standby", "standby")
                assert (state(first), state(second)) == ("complete", "complete")
            assert main(["activate", *controls]) == 0
            second.kill()  # what its source can't be told yet keeps no other disk
            assert main(["withdraw", *reversed(controls)]) == 1
            said = capsys.readouterr().err
            assert f"{controls[0]}: standby, it is at its source; `relocator activate" in said
            assert f"{controls[1]}: standby, it is at its source (withdrawn here, but" in said
            assert (state(one), state(two), state(first)) == ("standby", "standby", "complete")


def test_no_disk_is_given_back_where_another_can_not_be_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, standby(sites[0], first) as one:
        control = str(one.control_path)
        assert main(["activate", "--wait", control]) == 0
        assert main(["withdraw", control, str(tmp_path / "mistyped")]) == 1
        said = capsys.readouterr().err
        assert "mistyped" in said and "nothing was given back" in said
        assert state(one) == "active"


class Meanwhile:
    """A disk that something happens to just before it is given back."""

    def __init__(self, disk: group.Disk, happens: Callable[[], Any]) -> None:
        self._disk = disk
        self._happens = happens

    def call(self, verb: str, patience_s: float | None = 60.0, **arguments: Any) -> Any:
        if verb == "withdraw":
            self._happens()
        return self._disk.call(verb, patience_s, **arguments)


@pytest.mark.parametrize("happens", ["written", "killed"])
def test_the_first_refusal_leaves_the_other_disks_as_they_are(tmp_path: Path, happens: str) -> None:
    sources, sites = two_disks(tmp_path)
    with sources[0].serve() as first, sources[1].serve() as second:
        with standby(sites[0], first) as one, standby(sites[1], second) as two:
            group.activate([one.control, two.control])
            group.release([one.control, two.control])
            written = lambda: one.connect().pwrite(b"the VM runs here", 0)  # noqa: E731
            to_one = Meanwhile(one.control, written if happens == "written" else one.kill)
            failed, left = group.withdraw([to_one, two.control])
            assert failed is not None
            assert str(left) == "left as it was: all are given back, or none"
            assert state(two) == "active"
