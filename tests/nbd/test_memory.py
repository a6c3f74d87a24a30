"""What is fetched must not stay in memory: a proxy may have to fetch a terabyte."""

from hashlib import blake2b
from pathlib import Path

import nbd

from tests.support.servers import nbdkit, plugin, proxy

SIZE_BYTES = 192 << 20
MOST_GROWTH_KIB = 48 << 10
CONNECTIONS = 300


def resident_kib(pid: int) -> int:
    """Anonymous memory of a process that is resident now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def peak_kib(pid: int) -> int:
    """The most memory of a process that ever was resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def test_memory_does_not_grow_with_what_was_fetched(tmp_path: Path) -> None:
    arguments = ["pattern", f"size={SIZE_BYTES}"]
    with nbdkit(tmp_path, "source", arguments) as source:
        with proxy(tmp_path, source, "background=off") as server:
            before = resident_kib(server.process.pid)
            handle = server.connect()
            for offset in range(0, SIZE_BYTES // 4, 256 << 10):
                handle.pread(4096, offset)
            server.control.call("set", background="on")
            server.wait(120)
            grown = resident_kib(server.process.pid) - before
    assert grown < MOST_GROWTH_KIB, f"{grown} KiB more after {SIZE_BYTES >> 10} KiB were fetched"


def test_a_large_read_of_digests_takes_little_memory_and_is_right(tmp_path: Path) -> None:
    """A MiB of them is of 256 MiB of the disk."""
    length, step = 1 << 20, 1 << 14
    first = 5
    with (tmp_path / "disk.img").open("wb") as file:
        file.truncate(300 << 20)
        for at in (0, first + step // 16 - 1, first + step // 16, step // 16):
            file.seek(at * 4096)
            file.write(b"data" * 1024)
    with plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}") as server:
        handle = server.connect("digest")
        handle.pread(16, 0)
        before = peak_kib(server.process.pid)
        found = handle.pread(length, first * 16 + 3)
        grown = peak_kib(server.process.pid) - before
    assert grown < MOST_GROWTH_KIB, f"{grown} KiB more for {length >> 10} KiB"
    data, zeros = (blake2b(one * 1024, digest_size=16).digest() for one in (b"data", bytes(4)))
    expected = [zeros] * (length // 16 + 1)
    for at in (step // 16 - 1, step // 16, step // 16 - first):
        expected[at] = data
    assert found == b"".join(expected)[3:][:length]


def test_memory_does_not_grow_with_connections_that_came_and_went(tmp_path: Path) -> None:
    """nbdkit makes threads for each, and what Python keeps of a thread goes with it."""
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    flags = ["--threads", "16"]
    with plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}", flags=flags) as source:
        sizes = []
        for _ in range(2):
            for _ in range(CONNECTIONS):
                _busy_connection(source.socket)
            sizes.append(resident_kib(source.process.pid))
    grown = sizes[1] - sizes[0]
    assert grown < CONNECTIONS, f"{grown} KiB more after {CONNECTIONS} connections"


def _busy_connection(socket: Path) -> None:
    handle = nbd.NBD()
    handle.connect_unix(str(socket))
    for at in range(32):
        handle.aio_pread(nbd.Buffer(4096), at * 4096)
    while handle.aio_in_flight():
        handle.poll(-1)
    handle.shutdown()
