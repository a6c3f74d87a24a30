"""Every parameter of plugin and command line, given nonsense: one line says what is wrong."""

import argparse
import io
import math
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relocator import config
from relocator.cli import main
from relocator.cli import migrate as migrate_command
from relocator.cli import wait as wait_command
from relocator.cli.listening import parse_address
from relocator.errors import ConfigError
from relocator.iscsi import lun
from relocator.moving import address, agent, ahead, ends
from tests.support.command import relocator
from tests.support.servers import refused

LONG = "x" * 5000
DIGITS = "9" * 5000

#: what is right, or nearly: to be changed a little
_SEEDS = (
    *("", "0", "-1", "1", "4096", "64K", "1M", "9T", "1.5G", "none", "auto", "on", "off", "yes"),
    *("07:00,20M 23:30,none", "23:59", "2026-01-31T07:00+01:00", "02:00-04:00", "recent,hot"),
    *("trace:/etc/hostname", "/tmp", "/etc/hostname", "nbd://h:1/x", "nbds://h", "h:1", "[::1]:9"),
    *("nbd+unix:///?socket=/s", "ssh://u@h:22/x?port=1", "iscsi://u@h:1/iqn.2026-01.a:b/1"),
    *("ssh://h/s", "unix:/s", "/a,/b", "nbd://h,/b", "iqn.2026-01.org.example:disk", "2s", "nan"),
    *("inf", "1e400", "--rate", "'", "\0", "\ud800", "٣", "²", LONG, DIGITS, f"{DIGITS}M"),
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A text: one of the above, or cut, joined and changed."""
    text = draw(st.sampled_from(_SEEDS) | st.text(max_size=20))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, min(len(text), 40)))
        more = draw(st.sampled_from(_SEEDS[:-4]) | st.text(max_size=3))
        text = text[:at] + more + text[at + draw(st.integers(0, 3)) :]
    return text


def _migrating(text: str) -> object:
    options = argparse.Namespace(
        bandwidth=text, downtime_limit=text, multifd=text, uri=text, incoming=None, lost=[]
    )
    options.no_verify = options.quit_source = options.wait = False
    return migrate_command._plan(options)


#: what reads a text that an operator gives
READERS: dict[str, Callable[[str], object]] = {
    **{
        key: lambda text, key=key, read=read: read(key, text)
        for key, (_, _, read) in config.KEYS.items()
    },
    "--listen": lambda text: parse_address(text, "127.0.0.1:10809"),
    "--from": lambda text: address.parse("--from", text),
    "--disk": ends.parse_disk,
    "--window": lambda text: ahead.parse_window("--window", text),
    "--freeze": lambda text: agent.parse_agents("--freeze", text),
    "migrate": _migrating,
    "--ready": wait_command._ready,
    "--name": lun.check_name,
    "disk of iscsi": lun.check_uri,
    "--chap": lambda text: lun.read_chap(Path(text)),
}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(READERS)), texts())
@example("window", DIGITS)
@example("rate", DIGITS)
@example("connections", DIGITS)
@example("--listen", f"h:{DIGITS}")
@example("control", LONG)
@example("tls-psk", LONG)
@example("seed", "\0")
@example("order", f"trace:{LONG}")
@example("source", "nbd://[")
@example("source-bitmap", "\udcff")  # what is no UTF-8 on a command line
@example("finish-by", "0001-01-01T00:00")
def test_value(reader: str, text: str) -> None:
    """A text is read or refused; a number that comes of it can be counted with."""
    try:
        value = READERS[reader](text)
    except ConfigError as error:
        assert str(error)
        return
    if isinstance(value, float):
        assert math.isfinite(value)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted(config.KEYS)) | st.text(max_size=9), texts()))
def test_parameters(pairs: dict[str, str]) -> None:
    """Several at once; what goes together can be shown and used."""
    try:
        made = config.parse(pairs)
    except ConfigError as error:
        assert str(error)
        return
    if made.endpoint is not None:
        made.endpoint.with_export("control/seal")


#: a command with nothing behind it that could be done
COMMANDS = (
    *(["target", "/nonexistent/disk", "--print"], ["proxy", "/nonexistent/store", "--print"]),
    *(["status", "/nonexistent"], ["set", "/nonexistent"], ["wait", "/nonexistent"]),
    *(["activate", "/nonexistent"], ["pause"], ["metrics", "/a/d.sock", "/b/d.sock"], ["units"]),
    *(["migrate"], ["try", "/nonexistent"], ["iscsi"], ["completion"], []),
)
_OPTIONS = tuple(
    f"--{name}"
    for name in (
        *(key for key in config.KEYS if key not in ("disk", "store", "source")),
        *("listen", "socket", "congestion", "threads", "nbdkit-options", "detach", "graduate"),
        *("timeout", "ready", "json", "watch", "hold", "wait", "from", "to", "uri", "window"),
    )
)


def _no_server(name: str, *_arguments: object) -> NoReturn:
    pytest.fail(f"{name} was started in the test's place")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(COMMANDS),
    st.lists(st.tuples(st.sampled_from(_OPTIONS), texts()) | texts().map(lambda one: (one,)))
    .map(lambda groups: [word for group in groups for word in group])
    .filter(lambda words: not any(word.startswith(("-h", "--h", "--e", "/")) for word in words)),
)
def test_command_line(command: list[str], words: list[str]) -> None:
    """A command line is carried out, or refused in a line with exit status 2, or fails with 1."""
    if command[:1] == ["units"]:
        words = ["/nonexistent/units", *words]
    shown, told = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(shown), redirect_stderr(told):
        patched.setattr("os.execvpe", _no_server)
        try:
            status = main.main([*command, *words])
        except SystemExit as asked:  # argparse's
            status = int(asked.code or 0)
    assert status in (0, 1, 2)
    assert status == 0 or told.getvalue()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["proxy", "/tmp/s", "nbd://h", "--window", DIGITS], "window=99"),
        (["proxy", "/tmp/s", "nbd://h", "--rate", DIGITS], "rate=99"),
        (["proxy", "/tmp/s", "nbd://h", "--tls-psk", LONG], "tls-psk=x"),
        (["proxy", "/tmp/s", "nbd://h", "--connections", DIGITS], "connections=99"),
        (["proxy", "/tmp/s", "nbd://["], "source=nbd://["),
        (["target", "/nonexistent", "--socket", LONG], "--socket=x"),
        (["metrics", "/c", "--listen", f"h:{DIGITS}"], "--listen=h:99"),
    ],
)
def test_what_fuzzing_has_found_is_refused_in_a_line(arguments: list[str], wanted: str) -> None:
    done = relocator(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"relocator: {wanted}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("path", [LONG, f"/tmp/{'x' * 200}"])
def test_the_plugin_refuses_a_control_socket_with_too_long_a_path(
    tmp_path: Path, path: str
) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    assert "control=" in refused(f"disk={tmp_path / 'disk'}", f"control={path}")
