"""A peer that falls silent in the middle of a TLS handshake, as when the link is cut just then."""

import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relocator.errors import UpstreamError
from relocator.source import handles
from relocator.source.endpoint import Endpoint
from relocator.source.sockets import socket_of
from tests.support.servers import nbdkit

_GREETING = b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3)
_ACK = struct.pack(">QIII", 0x3E889045565A9, 5, 1, 0)  # to NBD_OPT_STARTTLS
KEY = "alice:" + "5a" * 16 + "\n"


@contextmanager
def silent() -> Iterator[int]:
    """A port whose server agrees to TLS, and says nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peers = []

        def serve() -> None:
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                peers.append(peer)
                time.sleep(0.3)  # libnbd is to be back from connecting
                peer.sendall(_GREETING)
                peer.recv(4 + 16, socket.MSG_WAITALL)
                peer.sendall(_ACK)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        for peer in peers:
            peer.close()


@pytest.fixture
def psk(tmp_path: Path) -> Path:
    path = tmp_path / "psk"
    path.write_text(KEY)
    return path


def endpoint(port: int, psk: Path) -> Endpoint:
    return Endpoint(f"nbds://alice@127.0.0.1:{port}", psk=psk)


def test_it_is_given_up_in_time_and_costs_no_processor(
    psk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "CONNECT_S", 2.0)
    with silent() as port:
        before = resource.getrusage(resource.RUSAGE_SELF)
        with pytest.raises(UpstreamError, match="no answer within 2 s"):
            handles.open_handle(endpoint(port, psk))
        after = resource.getrusage(resource.RUSAGE_SELF)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used_s < 0.5


def test_who_waits_is_asked_meanwhile_and_may_end_it(psk: Path) -> None:
    asked = []

    def idle() -> None:
        asked.append(time.monotonic())
        if len(asked) == 2:
            raise InterruptedError

    with silent() as port, pytest.raises(UpstreamError, match="no connection can be made"):
        handles.open_handle(endpoint(port, psk), idle=idle)
    assert len(asked) == 2


def test_a_connection_is_as_it_would_be_without(psk: Path, tmp_path: Path) -> None:
    with nbdkit(tmp_path, "tls", ["--tls=on", f"--tls-psk={psk}", "memory", "1M"]) as server:
        uri = f"nbds+unix://alice@/?socket={server.socket}"
        handle = handles.open_handle(Endpoint(uri, psk=psk))
        assert handle.get_tls_negotiated()
        assert not os.get_blocking(handle.aio_get_fd())
        with socket_of(handle.aio_get_fd()) as link:
            for limit in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                assert link.getsockopt(socket.SOL_SOCKET, limit, 16) == bytes(16)
        assert handles.read(handle, 0, 4096) == bytes(4096)
        handles.hang_up(handle)
