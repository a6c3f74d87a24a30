"""The control socket before clients that are broken, rude or many."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relocator.client import Client
from relocator.errors import ConfigError, RelocatorError
from relocator.running import control
from relocator.running.control import MOST_CLIENTS, MOST_LINE_BYTES, ControlServer, answer
from tests.support.servers import mistaken, moving, wait_for

STATUS = b'{"verb": "status"}\n'
SIZE_BYTES = 4 << 20


def call(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if verb != "status":
        raise ConfigError(f"'{verb}': is refused")
    return {"arguments": arguments}


@contextmanager
def serving(directory: Path, what: control.Call = call) -> Iterator[Path]:
    """A server that carries out what `what` says, on the socket that is returned."""
    server = ControlServer(directory / "control", what)
    server.start()
    try:
        yield directory / "control"
    finally:
        server.stop()


@contextmanager
def client(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(30)
        link.connect(str(path))
        yield link


def replies(link: socket.socket) -> list[dict[str, Any]]:
    """All that is answered until the server hangs up."""
    with link.makefile("rb") as lines:
        return [json.loads(line) for line in lines]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
requests = st.dictionaries(st.sampled_from(["verb", "rate"]) | st.text(), json_values).map(
    lambda value: json.dumps(value).encode()
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=300) | requests)
@example(b"[" * 60_000)
@example(b'{"verb": "status", "a": ' + b"9" * 50_000 + b"}")
@example(b'{"verb": "\\ud800"}')
def test_line(line: bytes) -> None:
    """Any line has one answer, an object that says whether it was carried out."""
    reply = answer(call, line)
    assert isinstance(reply["ok"], bool) and reply["ok"] == ("error" not in reply)
    assert b"\n" not in json.dumps(reply).encode()


def test_half_a_line_is_answered_when_its_client_is_done(tmp_path: Path) -> None:
    with serving(tmp_path) as path, client(path) as link:
        link.sendall(b'{"verb": "sta')
        link.shutdown(socket.SHUT_WR)
        (reply,) = replies(link)
        assert "not a line of JSON" in reply["error"]


def test_a_line_without_end_has_one_answer_and_a_goodbye(tmp_path: Path) -> None:
    with serving(tmp_path) as path, client(path) as link:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            link.sendall(b"x" * (8 << 20))
        reply = json.loads(link.recv(4096))
        assert reply == {"ok": False, "error": f"a line of more than {MOST_LINE_BYTES} bytes"}
        with client(path) as other:
            other.sendall(STATUS)
            assert json.loads(other.recv(4096))["ok"]


def test_lines_of_one_client_are_answered_in_order_however_they_arrive(tmp_path: Path) -> None:
    with serving(tmp_path) as path, client(path) as link:
        text = b"".join(b'{"verb": "status", "number": %d}\n' % at for at in range(50))
        for at in range(0, len(text), 37):
            link.sendall(text[at : at + 37])
        link.shutdown(socket.SHUT_WR)
        assert [reply["arguments"]["number"] for reply in replies(link)] == [*range(50)]


def test_clients_that_never_speak_or_never_read_give_way_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "SILENT_S", 0.5)
    long_answer = {"text": "x" * (1 << 20)}
    with serving(tmp_path, lambda _verb, _arguments: long_answer) as path:
        rude = [socket.socket(socket.AF_UNIX) for _ in range(MOST_CLIENTS + 20)]
        try:
            for number, link in enumerate(rude):
                link.connect(str(path))
                if number % 2:
                    link.sendall(STATUS)
            with client(path) as link:
                link.sendall(STATUS)
                link.shutdown(socket.SHUT_WR)
                assert replies(link) == [{"ok": True, **long_answer}]
        finally:
            for link in rude:
                link.close()


def test_where_all_are_busy_one_more_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.2)
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def slow(_verb: str, _arguments: dict[str, Any]) -> dict[str, Any]:
        begun.release()
        go_on.wait(60)
        return {}

    with serving(tmp_path, slow) as path:
        links = [socket.socket(socket.AF_UNIX) for _ in range(MOST_CLIENTS)]
        try:
            for link in links:
                link.settimeout(30)
                link.connect(str(path))
                link.sendall(STATUS)
                begun.acquire()
            with client(path) as link:
                (reply,) = replies(link)
                assert reply["error"] == f"{MOST_CLIENTS} clients are being served; try again"
            go_on.set()
            assert {link.recv(100) for link in links} == {b'{"ok": true}\n'}
        finally:
            go_on.set()
            for link in links:
                link.close()


def test_who_waits_and_hangs_up_gives_up_its_place(tmp_path: Path) -> None:
    with moving(tmp_path, SIZE_BYTES, "background=off", "readahead=0") as server:
        with ExitStack() as ends:
            for _ in range(MOST_CLIENTS):
                ends.enter_context(client(server.control_path)).sendall(b'{"verb": "wait"}\n')
        assert server.status()["state"] == "active"
        with client(server.control_path) as link:
            link.sendall(b'{"verb": "wait", "timeout_s": 1.5}\n')
            link.shutdown(socket.SHUT_WR)  # it still wants its answer
            (reply,) = replies(link)
            assert "'wait' gave up after 1.5 s" in reply["error"]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (b"", "closed without an answer"),
        (b'{"ok": true, "state": "act', "closed in the midst of an answer"),
        (b"[1]\n", "answers '[1]'; is it the socket of control=?"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "answers 'HTTP/1.1 400 Bad Request'; is it"),
        (b"NBDMAGIC\0\xff\n", "answers 'NBDMAGIC\\x00\\ufffd'; is it"),
        (b"[" * 100_000 + b"\n", "answers '[[[["),
    ],
)
def test_an_answer_that_is_none_is_said_in_a_line(tmp_path: Path, said: bytes, wanted: str) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(1000)
                link.sendall(said)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(RelocatorError, match=f"{path}: {re.escape(wanted)}"):
            Client(path).call("status")
        thread.join(20)


def test_a_thousand_clients_stop_neither_each_other_nor_the_guest(tmp_path: Path) -> None:
    """Half of them ask; the others are silent, hang up in a line, or send what is no line."""
    hasty = mistaken(tmp_path, "from relocator.running import control\ncontrol.SILENT_S = 0.5")
    with moving(tmp_path, SIZE_BYTES, "background=off", "readahead=0", file=hasty) as server:
        guest = server.connect()
        before = open_files(server.process.pid)
        links = [socket.socket(socket.AF_UNIX) for _ in range(1000)]
        done: list[bool] = []

        def converse(number: int, link: socket.socket) -> None:
            link.settimeout(120)
            link.connect(str(server.control_path))
            if number % 2:
                link.sendall(STATUS)
                with link.makefile("rb") as lines:
                    done.append(json.loads(lines.readline())["ok"])
            elif number % 4:
                link.sendall(b'{"verb": "sta\xff' if number % 8 == 2 else b"\0" * 70_000)

        threads = [
            threading.Thread(target=converse, args=pair, daemon=True) for pair in enumerate(links)
        ]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                guest.pwrite(b"here" * 1024, 8192)
                guest.flush()
                assert open_files(server.process.pid) <= before + MOST_CLIENTS + 10
                time.sleep(0.05)
            assert done == [True] * 500
            assert server.status()["error"] is None
        finally:
            for link in links:
                link.close()
        wait_for(lambda: open_files(server.process.pid) <= before, "the clients' files")


def test_a_client_waits_where_more_wait_than_the_kernel_queues(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen(0)
        with client(tmp_path / "control"):  # takes the only place

            def serve() -> None:
                time.sleep(0.3)
                first, second = (listener.accept()[0] for _ in range(2))
                with first, second:
                    second.recv(100)
                    second.sendall(b'{"ok": true}\n')

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            assert Client(tmp_path / "control").call("status", 20.0) == {}
    thread.join(20)


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
