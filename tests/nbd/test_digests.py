"""What a relocator says of its content without sending it: the exports `digests/UNIT`."""

import hashlib
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.support.model import source_bytes
from tests.support.servers import Server, proxy, target

SIZE_BYTES = (1 << 20) + 5 * 512  # the last unit of any size is a short one
UNITS = (4096, 1 << 18, 1 << 20)


def digests(server: Server, unit_bytes: int) -> bytes:
    """The whole export, read in pieces that begin and end anywhere."""
    handle = nbd.NBD()
    handle.set_export_name(f"digests/{unit_bytes}")
    handle.connect_uri(server.uri.replace("///", f"///digests/{unit_bytes}"))
    size = handle.get_size()
    found = b"".join(bytes(handle.pread(min(75, size - at), at)) for at in range(0, size, 75))
    handle.shutdown()
    return found


def of(content: bytes | bytearray, unit_bytes: int) -> list[bytes]:
    pieces = [content[at : at + unit_bytes] for at in range(0, len(content), unit_bytes)]
    return [hashlib.blake2b(piece, digest_size=32).digest() for piece in pieces]


@pytest.mark.parametrize("unit_bytes", UNITS)
def test_a_digest_is_of_what_the_disk_holds_now(tmp_path: Path, unit_bytes: int) -> None:
    with target(tmp_path, SIZE_BYTES) as server:
        model = source_bytes(SIZE_BYTES)
        server.connect().pwrite(b"written", 9000)
        model[9000:9007] = b"written"
        assert digests(server, unit_bytes) == b"".join(of(model, unit_bytes))


def test_what_is_not_here_yet_has_no_digest(tmp_path: Path) -> None:
    with target(tmp_path, SIZE_BYTES) as source:
        with proxy(tmp_path, source, "background=off", "readahead=0") as server:
            assert digests(server, 4096) == bytes(32 * 257)
            assert digests(server, 1 << 18) == bytes(32 * 5)
            handle = server.connect()
            data = bytes(handle.pread(4096, 8192))
            handle.pwrite(b"new" * 2048, 4096 * 70)
            found = digests(server, 4096)
            known = {2: data, 70: (b"new" * 2048)[:4096]}
            for unit in range(257):
                expected = of(known[unit], 4096)[0] if unit in known else bytes(32)
                if unit != 71:  # written in part, so it was fetched
                    assert found[32 * unit :][:32] == expected
            assert found[32 * 71 :][:32] != bytes(32)
            assert digests(server, 1 << 18)[:64] == bytes(64)


def test_in_standby_nothing_has_a_digest(tmp_path: Path) -> None:
    """What was copied ahead may be older than the source."""
    with target(tmp_path, SIZE_BYTES) as source:
        with proxy(tmp_path, source, "mode=standby") as server:
            while server.status()["present_blocks"] < 257:
                pass
            assert digests(server, 4096) == bytes(32 * 257)
            server.control.call("activate", wait=True)
            server.wait()
            assert digests(server, 4096) == b"".join(of(source_bytes(SIZE_BYTES), 4096))


@pytest.mark.parametrize("name", ["digests/", "digests/2048", "digests/5000", "digests/04096"])
def test_a_unit_that_there_is_not_is_refused(tmp_path: Path, name: str) -> None:
    with target(tmp_path, SIZE_BYTES) as server:
        handle: Any = nbd.NBD()
        with pytest.raises(nbd.Error):
            handle.connect_uri(server.uri.replace("///", f"///{name}"))
