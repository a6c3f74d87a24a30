"""A Unix socket is there once it is listened on, and a path belongs to one server."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from relocator.client import Client
from relocator.errors import ConfigError
from relocator.running.control import ControlServer, listen_at


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except FileNotFoundError:
            return False
    return True


@pytest.fixture
def at_listen(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What is done right before a socket is listened on: nobody could connect to it yet."""
    steps: list[Callable[[], None]] = []
    listen = socket.socket.listen

    def after_steps(self: socket.socket, backlog: int) -> None:
        for step in steps:
            step()
        listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", after_steps)
    return steps


def test_who_sees_the_socket_can_connect(
    tmp_path: Path, at_listen: list[Callable[[], None]]
) -> None:
    path, found = tmp_path / "control", list[bool]()
    at_listen.append(lambda: found.append(connects(path)))
    with listen_at(path, "control"):
        assert (found, connects(path)) == ([False], True)
        assert list(tmp_path.iterdir()) == [path]


def test_a_server_takes_another_s_place_and_nobody_is_refused_meanwhile(
    tmp_path: Path, at_listen: list[Callable[[], None]]
) -> None:
    path, found = tmp_path / "control", list[bool]()
    with listen_at(path, "control") as first:
        at_listen.append(lambda: found.append(connects(path)))
        with listen_at(path, "control", replacing=True) as second:
            assert (found, connects(path)) == ([True], True)
            assert list(tmp_path.iterdir()) == [path]
            for one in (first, second):
                one.accept()[0].close()


def test_a_path_that_another_took_meanwhile_is_its_own(
    tmp_path: Path, at_listen: list[Callable[[], None]]
) -> None:
    path = tmp_path / "control"
    with ExitStack() as held:

        def another() -> None:
            at_listen.clear()
            held.enter_context(listen_at(path, "control"))

        at_listen.append(another)
        with pytest.raises(FileExistsError):
            listen_at(path, "control")
        assert connects(path)
        assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_is_listened_on_is_refused_and_left_to_who_listens(tmp_path: Path) -> None:
    path = tmp_path / "control"
    first = ControlServer(path, lambda verb, _: {"verb": verb})
    first.start()
    try:
        with pytest.raises(ConfigError, match=r"control=.*control: another process listens there"):
            ControlServer(path, lambda verb, _: {"verb": f"another's {verb}"})
        assert Client(path).call("status") == {"verb": "status"}
        assert list(tmp_path.iterdir()) == [path]
    finally:
        first.stop()
    assert not list(tmp_path.iterdir())


def test_only_its_owner_may_ask_a_control_socket(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / "control", lambda _verb, _: {})
    try:
        assert (tmp_path / "control").stat().st_mode & 0o777 == 0o600
    finally:
        server.stop()


def test_what_nobody_can_listen_on_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    for path, why in (
        (tmp_path / "none" / "control", "No such file or directory"),
        (tmp_path / ("n" * 120), "AF_UNIX path too long"),
    ):
        with pytest.raises(ConfigError, match=f"control={path}: {why}"):
            ControlServer(path, lambda _verb, _: {})
    assert not list(tmp_path.iterdir())
