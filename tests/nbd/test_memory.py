"""What is fetched must not stay in memory: a proxy may have to fetch a terabyte."""

from pathlib import Path

from tests.support.servers import nbdkit, plugin

SIZE_BYTES = 192 << 20
MOST_GROWTH_KIB = 48 << 10


def resident_kib(pid: int) -> int:
    """Anonymous memory of a process that is resident now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def test_memory_does_not_grow_with_what_was_fetched(tmp_path: Path) -> None:
    arguments = ["pattern", f"size={SIZE_BYTES}"]
    with nbdkit(tmp_path, "source", arguments) as source:
        keys = (f"store={tmp_path / 'store'}", f"source={source.uri}", "background=off")
        with plugin(tmp_path, "proxy", *keys) as proxy:
            before = resident_kib(proxy.process.pid)
            handle = proxy.connect()
            for offset in range(0, SIZE_BYTES // 4, 256 << 10):
                handle.pread(4096, offset)
            proxy.control.call("set", background="on")
            proxy.control.call("wait", timeout_s=120)
            grown = resident_kib(proxy.process.pid) - before
    assert grown < MOST_GROWTH_KIB, f"{grown} KiB more after {SIZE_BYTES >> 10} KiB were fetched"
