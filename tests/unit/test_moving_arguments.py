"""How a move is named on the command line, and what is said when it is named wrongly."""

import subprocess
import sys
from pathlib import Path

import pytest

from relocator.errors import ConfigError, RelocatorError
from relocator.moving.address import parse
from relocator.moving.ahead import Ahead, Conditions
from relocator.moving.ends import open_disk, parse_disk
from relocator.moving.monitor import Monitor
from relocator.moving.reach import reaching
from relocator.moving.telling import nothing

WHOLE = ["--from", "/a", "--to", "/b", "--uri", "tcp:h:1", "--disk", "/c,/d"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/run/q.sock", ("/run/q.sock", None, None, None)),
        ("unix:q.sock", ("q.sock", None, None, None)),
        ("10.1.0.2:4445", (None, "10.1.0.2", 4445, None)),
        ("[::1]:4445", (None, "::1", 4445, None)),
        ("ssh://root@site-a:22/run/q.sock", ("/run/q.sock", None, None, "site-a")),
    ],
)
def test_an_address_is_a_path_a_port_or_a_path_behind_ssh(text: str, wanted: object) -> None:
    found = parse("--from", text)
    assert (found.path, found.host, found.port, found.ssh) == wanted


@pytest.mark.parametrize(
    "text", ["", "h:0", "h:70000", "tcp://h:1", "ssh://", "ssh://h", "ssh://h:0/p", "ssh://-h/p"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--from="):
        parse("--from", text)


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    for text in ("ssh://me:open-sesame@h/p", "ssh://me:open-sesame@h:0/p"):
        with pytest.raises(ConfigError, match=r"^--from=ssh://me:\.\.\.@h") as refusal:
            parse("--from", text)
        assert "open-sesame" not in str(refusal.value)


def test_a_socket_that_cannot_be_held_is_named_by_its_option(tmp_path: Path) -> None:
    ahead = Ahead([], Conditions(hold=tmp_path / "no" / "word"), nothing)
    with pytest.raises(ConfigError, match=f"^--hold={tmp_path}/no/word: No such file or directory"):
        ahead()


@pytest.mark.parametrize("text", ["", "/a", ",/a", "/a,", "/a,h:1", "h:1,/a"])
def test_a_disk_has_two_control_sockets(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--disk="):
        parse_disk(text)


def test_disks_are_called_by_their_proxies_sockets() -> None:
    with reaching() as reach:
        for socket, name in (("/run/vm1.root.sock", "vm1.root"), ("/run/vm1", "vm1")):
            assert open_disk(f"/run/source.sock,{socket}", reach, 3).name == name


def test_a_source_whose_certificate_nobody_looks_at_is_refused() -> None:
    wanted = "--disk=nbds://h: .* libnbd believes any certificate"
    with reaching() as reach, pytest.raises(ConfigError, match=wanted):
        open_disk("nbds://h,/run/vm1.sock", reach, 0)


def test_ssh_forwards_the_far_socket_and_runs_nothing_there() -> None:
    command = parse("--from", "ssh://me@site:2222/run/q").forward_command("/tmp/l", ["-i", "key"])
    assert command[:4] == ["ssh", "-N", "-i", "key"]
    assert command[-8:] == ["-L", "/tmp/l:/run/q", "-p", "2222", "-l", "me", "--", "site"]


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    with reaching() as reach, pytest.raises(RelocatorError, match=r"pip install qemu\.qmp"):
        Monitor("the source's QEMU", parse("--from", "/nonexistent"), reach).connect()


@pytest.mark.parametrize(
    ("arguments", "status", "wanted"),
    [
        ([], 2, "--from: is missing; give --from=QMP"),
        (WHOLE[:-2], 2, "--disk: is missing; give --disk=SOURCE,DEST"),
        ([*WHOLE, "--disk", "/c,/d"], 2, "--disk: the same disk is given twice"),
        ([*WHOLE, "--uri", "nowhere"], 2, "--uri=nowhere: write tcp:HOST:PORT or unix:PATH"),
        ([*WHOLE, "--bandwidth", "fast"], 2, "--bandwidth=fast: not a rate"),
        ([*WHOLE, "--multifd", "0"], 2, "--multifd=0: must be a number from 1 to 255"),
        ([*WHOLE, "--window", "noon"], 2, "--window=noon: write two times such as 02:00-04:00"),
        ([*WHOLE, "--ssh-options", "'"], 2, "--ssh-options=': No closing quotation"),
        (WHOLE, 1, "the source's QEMU can't be reached"),
        (["--go", "/nonexistent"], 1, "/nonexistent: No such file or directory"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: list[str], status: int, wanted: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "relocator.cli.main", "migrate", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr
