"""The servers start whatever environment they are started from, and whatever was left there."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relocator.cli.launch import become
from relocator.client import Client
from relocator.errors import RelocatorError
from testbed.gauge.pair import pair
from tests.support.servers import PLUGIN, status_or_none, wait_for

COMMAND = [sys.executable, "-m", "relocator.cli.main"]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin of a virtual environment in which there is no `nbd`."""
    place = tmp_path_factory.mktemp("foreign") / "venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", place], check=True)
    return place / "bin"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"content!" * 8192)
    return path


def environments(foreign: Path) -> dict[str, dict[str, str]]:
    usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    activated = f"{foreign}:{usual}"
    return {
        "activated": {"PATH": activated, "VIRTUAL_ENV": str(foreign.parent)},
        "python-home": {"PATH": activated, "PYTHONHOME": str(foreign.parent)},
        "sudo": {"PATH": usual, "SUDO_USER": "somebody"},
        "cron": {"PATH": "/usr/bin:/bin", "HOME": "/root", "SHELL": "/bin/sh"},
        "nothing": {},
    }


@contextmanager
def served(argv: list[str], env: dict[str, str], socket: Path) -> Iterator[str]:
    """The URI of a server, once it answers."""
    process = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: answers(socket) or process.poll() is not None, "the server")
        assert process.poll() is None, process.communicate()[1]
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.kill()
        process.communicate()


def bytes_at(uri: str) -> bytes:
    return subprocess.run(["nbdcopy", uri, "-"], capture_output=True, check=True).stdout


@pytest.mark.parametrize("name", ["activated", "python-home", "sudo", "cron", "nothing"])
def test_a_move_starts_from_any_environment(
    name: str, foreign: Path, disk: Path, tmp_path: Path
) -> None:
    env = environments(foreign)[name] | {"PYTHONPATH": str(Path.cwd())}
    if name == "nothing":  # what is started by its full path finds its package by itself
        env = {}
    command = [str(Path(sys.executable).with_name("relocator"))] if name == "nothing" else COMMAND
    if name == "python-home":  # it spoils our own Python too, so it must be set for nbdkit alone
        env.pop("PYTHONHOME")
        command = [sys.executable, "-c", home_then_main(foreign)]
    source, copy = tmp_path / "s.sock", tmp_path / "c.sock"
    control = tmp_path / "control"
    with served([*command, "target", str(disk), "--socket", str(source)], env, source) as uri:
        argv = [*command, "proxy", str(tmp_path / "store"), uri, "--socket", str(copy)]
        with served([*argv, "--control", str(control)], env, copy) as moved:
            assert bytes_at(moved) == disk.read_bytes()
            Client(control).call("wait", timeout_s=30)


def home_then_main(foreign: Path) -> str:
    return (
        f"import os, sys; os.environ['PYTHONHOME'] = {str(foreign.parent)!r}; "
        "from relocator.cli.main import main; sys.exit(main())"
    )


def has_graduated(control: Path) -> bool:
    """As far as can be asked: the proxy starts, and is ended when the plain server's turn comes."""
    status = status_or_none(Client(control))
    return status is not None and status["graduated"]


def test_a_graduated_server_starts_from_an_activated_environment(
    foreign: Path, disk: Path, tmp_path: Path
) -> None:
    env = environments(foreign)["activated"] | {"PYTHONPATH": str(Path.cwd())}
    source, copy, control = (tmp_path / name for name in ("s.sock", "c.sock", "control"))
    with served([*COMMAND, "target", str(disk), "--socket", str(source)], env, source) as uri:
        argv = [*COMMAND, "proxy", str(tmp_path / "store"), uri, "--graduate"]
        argv += ["--socket", str(copy), "--control", str(control)]
        process = subprocess.Popen(argv, env=env)
        try:
            wait_for(lambda: has_graduated(control), "the plain server")
            assert bytes_at(f"nbd+unix:///?socket={copy}") == disk.read_bytes()
        finally:
            process.terminate()
            assert process.wait(20) == 0


def test_a_printed_command_works_where_it_was_printed(
    foreign: Path, disk: Path, tmp_path: Path
) -> None:
    env = environments(foreign)["activated"] | {"PYTHONPATH": str(Path.cwd())}
    socket = tmp_path / "t.sock"
    argv = [*COMMAND, "target", str(disk), "--socket", str(socket), "--print"]
    line = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
    with served(["/bin/sh", "-c", f"exec {line}"], env, socket) as uri:
        assert bytes_at(uri) == disk.read_bytes()


def test_a_printed_command_has_nothing_to_mend_in_a_usual_environment(disk: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path.cwd())}
    argv = [*COMMAND, "target", str(disk), "--print"]
    line = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
    assert shlex.split(line)[0] == "nbdkit"


def test_a_bare_nbdkit_says_in_one_line_what_to_do(foreign: Path, disk: Path) -> None:
    nbdkit = shutil.which("nbdkit")
    assert nbdkit is not None
    env = environments(foreign)["activated"]
    argv = [nbdkit, "-f", "-U", "-", "python", str(PLUGIN), f"disk={disk}", "--run", "true"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no module nbd" in done.stderr and "PATH=/usr/bin:$PATH" in done.stderr


def test_without_nbdkit_the_message_says_so() -> None:
    with pytest.raises(RelocatorError, match=r"can't be started: No such file .*; see doctor"):
        become(["an-nbdkit-that-is-not-installed"])


def test_verbs_import_nothing_that_they_do_not_need() -> None:
    """While a VM stands still, `relocator activate` is waited for."""
    code = (
        "import sys; from relocator.cli.main import main; main(['activate', '/nowhere']); "
        "print(*sorted(sys.modules))"
    )
    env = os.environ | {"PYTHONPATH": str(Path.cwd())}
    argv = [sys.executable, "-S", "-c", code]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"rich", "nbd", "socketserver", "threading", "pathlib", "inspect"}


def test_a_server_starts_again_on_the_socket_of_one_that_was_killed(
    disk: Path, tmp_path: Path
) -> None:
    socket = tmp_path / "t.sock"
    argv = [*COMMAND, "target", str(disk), "--socket", str(socket)]
    for _ in range(2):
        with subprocess.Popen(argv) as server:
            wait_for(lambda: answers(socket), "the server")
            done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
            assert (done.returncode, "another process listens there" in done.stderr) == (2, True)
            server.kill()


def answers(socket: Path) -> bool:
    argv = ["nbdinfo", f"nbd+unix:///?socket={socket}"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_the_test_beds_servers_start_from_an_activated_environment(
    foreign: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", environments(foreign)["activated"]["PATH"])
    with pair(disk, tmp_path) as served_pair:
        found = bytes_at(f"nbd+unix:///?socket={served_pair.proxy.socket}")
    assert found == disk.read_bytes()
