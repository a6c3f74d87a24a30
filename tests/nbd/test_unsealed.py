"""What ends a start is found before the source is asked: it stays where it is, and is written."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from relocator.client import Client
from tests.support.servers import (
    PLUGIN,
    Server,
    mistaken,
    nbdkit,
    plugin,
    refused,
    target,
    wait_for,
)

SIZE_BYTES = 1 << 20

#: ends when it is asked for its seal, once that is made or before
_ENDS = """
import os as _os
from relocator.running.handover import Handover as _Handover
_seal = _Handover.seal
def _ends(self, *arguments, **options):
    {first}
    _os._exit(1)
_Handover.seal = _ends
"""


def a_trace_that_is_none(tmp_path: Path, _: Server) -> tuple[str, str]:
    (tmp_path / "trace").write_text("0,4096\nhere\n")
    return f"order=trace:{tmp_path}/trace", "trace: line 2: 'here' is not OFFSET[,LENGTH]"


def a_trace_below_zero(tmp_path: Path, _: Server) -> tuple[str, str]:
    (tmp_path / "trace").write_text("-4096\n")
    return f"order=trace:{tmp_path}/trace", "trace: line 1: '-4096' has a number below 0"


def a_control_path_in_use(_tmp_path: Path, source: Server) -> tuple[str, str]:
    return f"control={source.control_path}", "another process listens there"


def a_control_path_without_a_directory(tmp_path: Path, _: Server) -> tuple[str, str]:
    return f"control={tmp_path}/none/control", "No such file or directory; give a path in"


@pytest.mark.parametrize(
    "wrong",
    [
        a_trace_that_is_none,
        a_trace_below_zero,
        a_control_path_in_use,
        a_control_path_without_a_directory,
    ],
    ids=lambda wrong: wrong.__name__,
)
def test_a_start_that_is_refused_leaves_the_source_unsealed(
    tmp_path: Path, wrong: Callable[[Path, Server], tuple[str, str]]
) -> None:
    with target(tmp_path, SIZE_BYTES) as source:
        key, why = wrong(tmp_path, source)
        assert why in refused(f"source={source.uri}", f"store={tmp_path}/store", key)
        assert source.status()["state"] == "complete"
        source.connect().pwrite(b"written", 0)


@pytest.mark.parametrize("within", ["new/store", "new"])
def test_a_control_path_in_a_directory_that_is_made_is_served(tmp_path: Path, within: str) -> None:
    store, control = tmp_path / "new" / "store", tmp_path / within / "control"
    with target(tmp_path, SIZE_BYTES) as source:
        keys = (f"source={source.uri}", f"store={store}", f"control={control}")
        with nbdkit(tmp_path, "proxy", ["python", str(PLUGIN), *keys]):
            Client(control).call("wait", timeout_s=60)
    assert (store / "disk.img").read_bytes() == (tmp_path / "disk.img").read_bytes()


@pytest.mark.parametrize(
    "first", ["pass", "_seal(self, *arguments, **options)"], ids=("not sealed yet", "sealed")
)
def test_a_start_that_failed_is_given_up_by_one_that_is_to_stand_by(
    sites: Any, tmp_path: Path, first: str
) -> None:
    a, b, _ = sites
    wanted = (f"disk={a.image}", f"store={a.maps}")
    with ExitStack() as running:
        file = mistaken(tmp_path, _ENDS.format(first=first))
        source = running.enter_context(plugin(a.directory, "target", *wanted, file=file))
        keys = (f"store={b.directory / 'store'}", f"source={source.uri}")
        refused(*keys, "mode=active")
        again = running.enter_context(a.target())
        proxy = running.enter_context(b.proxy(again, "mode=standby"))
        assert proxy.status()["state"] == "standby"
        wait_for(lambda: proxy.control.call("identify")["withdrawn"] is None, "the word of it")
        assert again.status()["state"] == "complete"
        vm = again.connect()
        vm.pwrite(b"the VM goes on here", 0)
        proxy.control.call("activate", wait=True)
        assert proxy.connect().pread(19, 0) == b"the VM goes on here"
