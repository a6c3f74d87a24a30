"""The verbs of a running disk, with any arguments in any order: answered, and it lives on.

A proxy in standby, taken over and given back, sealed and refused: real, with a relocator as source.
"""

import atexit
import json
import socket
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.test_control import json_values
from tests.fuzz.test_parameters import texts
from tests.support.model import source_bytes
from tests.support.servers import Server, plugin, proxy

SIZE_BYTES = 64 << 20
#: of the source, so that the copy is not complete too soon
SLOW = ("--filter=rate", "rate=4M")
#: all but those that take their time by themselves
VERBS = (
    *("status", "map", "set", "pause", "resume", "flush", "reserve", "refresh", "release"),
    *("withdraw", "identify", "epoch", "seal", "unseal", "moved", "verify", "activate", "explode"),
)
KEYS = ("rate", "finish-by", "window", "background", "order", "refresh", "cells", "hold", "seal")


@cache
def disk() -> Server:
    """A proxy for as long as this process lives."""
    ends = ExitStack()
    atexit.register(ends.close)
    directory = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="relocator-fuzz-")))
    image = directory / "disk.img"
    image.write_bytes(source_bytes(SIZE_BYTES))
    source = ends.enter_context(
        plugin(directory, "target", f"disk={image}", *SLOW[1:], flags=SLOW[:1])
    )
    keys = ("mode=standby", "background=off", "readahead=0", "retry-timeout=2", "refresh=off")
    made: Server = ends.enter_context(proxy(directory, source, *keys))
    return made


def asked(line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(50)
        link.connect(str(disk().control_path))
        link.sendall(line + b"\n")
        link.shutdown(socket.SHUT_WR)
        with link.makefile("rb") as lines:
            (answer,) = lines
    found: dict[str, Any] = json.loads(answer, parse_constant=_no_number)
    return found


def _no_number(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


values = texts() | json_values
arguments = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), values, max_size=3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(VERBS), arguments), min_size=1, max_size=4))
@example([("set", {"rate": "9" * 400})])
@example([("set", {"window": "8388607T"}), ("set", {"rate": "0.000000001"})])
@example([("set", {"background": "on", "refresh": "0.1"}), ("activate", {"wait": True})])
@example([("withdraw", {}), ("seal", {}), ("unseal", {})])
def test_verb(steps: list[tuple[str, dict[str, Any]]]) -> None:
    """Each has one answer that is JSON (and no NaN in it), and the disk answers on."""
    for verb, given_arguments in steps:
        reply = asked(json.dumps({**given_arguments, "verb": verb}).encode())
        assert reply["ok"] or reply["error"]
    assert asked(b'{"verb": "status"}')["ok"]
    assert disk().process.poll() is None
