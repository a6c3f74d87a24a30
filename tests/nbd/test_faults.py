"""What one end's sudden death does to the other: nothing."""

import signal
import time
from pathlib import Path

import nbd
import pytest

from tests.support.model import source_bytes
from tests.support.servers import mistaken, nbdkit, plugin, proxy, target, wait_for

SIZE_BYTES = 8 << 20


def test_a_target_survives_proxies_that_are_killed_in_the_middle(tmp_path: Path) -> None:
    flags = ("-t", "1")  # as `relocator target` starts it
    with target(tmp_path, SIZE_BYTES, flags=flags) as source:
        for number in range(12):
            if number:  # the one before is lost, and the disk was its
                source.control.call("unseal", force=True)
            keys = (f"store={tmp_path / f'store{number}'}", f"source={source.uri}")
            with plugin(tmp_path, "proxy", *keys, "window=4M") as server:
                time.sleep(0.002 * number)
                server.kill()
            assert source.process.poll() is None, source.log.read_text()
        with plugin(
            tmp_path, "proxy", f"store={tmp_path / 'store11'}", f"source={source.uri}"
        ) as last:
            last.wait()
    assert (tmp_path / "store11" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_a_source_that_comes_back_as_another_disk_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "other.img").write_bytes(b"other" * 65536)
    with target(tmp_path, SIZE_BYTES) as source:
        with proxy(tmp_path, source, "background=off", "readahead=0", "retry-timeout=1") as server:
            handle = server.connect()
            handle.pread(4096, 0)
            source.kill()
            with plugin(tmp_path, "target", f"disk={tmp_path / 'other.img'}"):
                with pytest.raises(nbd.Error, match="EIO"):
                    handle.pread(4096, 8192)
            assert server.status()["present_blocks"] == 1


def test_a_mistake_in_what_nobody_waits_for_is_told_and_ends_nothing(tmp_path: Path) -> None:
    wrong = mistaken(
        tmp_path,
        "from relocator.running import afterwards\n\n"
        "def mistaken(*_, **__):\n"
        "    raise LookupError('a mistake')\n\n"
        "afterwards.hints.ask = mistaken\n",
    )
    with target(tmp_path, SIZE_BYTES) as source:
        with proxy(tmp_path, source, "rate=8M", file=wrong) as server:
            wait_for(lambda: "a mistake" in str(server.status()["error"]), "word")
            server.hurry()
            server.wait()
            assert "Traceback" in server.log.read_text()
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_a_working_set_that_is_damaged_costs_an_activation_nothing(tmp_path: Path) -> None:
    wrong = mistaken(
        tmp_path,
        "from relocator.copying.recent import Recent\n\n"
        "Recent.places = lambda self, most=None: b'no such thing'\n",
    )
    with target(tmp_path, SIZE_BYTES, file=wrong) as source:
        with proxy(tmp_path, source, "mode=standby", "order=recent,sequential") as server:
            server.control.call("activate", wait=True)
            server.connect().pwrite(b"here", 0)
            server.wait()
    model = source_bytes(SIZE_BYTES)
    model[:4] = b"here"
    assert (tmp_path / "store" / "disk.img").read_bytes() == model


def test_a_thread_that_dies_of_a_mistake_ends_the_server_and_not_the_data(tmp_path: Path) -> None:
    wrong = mistaken(
        tmp_path,
        "import time\nfrom relocator.copying.copier import Copier\n\n"
        "def mistaken(self):\n"
        "    while not self._pacer.running:\n"
        "        time.sleep(0.3)\n"
        "    raise LookupError('a mistake')\n\n"
        "Copier._run = mistaken\n",
    )
    with target(tmp_path, SIZE_BYTES) as source:
        keys = (f"store={tmp_path / 'store'}", f"source={source.uri}", "readahead=0")
        with plugin(tmp_path, "proxy", *keys, "background=off", file=wrong) as server:
            handle = server.connect()
            handle.pwrite(b"kept" * 1024, 4096)
            server.control.call("set", background="on")
            assert server.process.wait(20) == 1
            assert "a mistake" in server.log.read_text()
        with plugin(tmp_path, "proxy", *keys) as again:
            assert again.connect().pread(4096, 4096) == b"kept" * 1024


def test_a_flush_that_failed_is_told_though_nothing_is_written_after_it(tmp_path: Path) -> None:
    failing = tmp_path / "failing"
    wrong = mistaken(
        tmp_path,
        "from relocator.store.image import Image\n"
        "_sync = Image.sync\n"
        "def sync(image):\n"
        f"    if os.path.exists({str(failing)!r}):\n"
        "        raise OSError(5, 'the disk fails')\n"
        "    _sync(image)\n"
        "Image.sync = sync\n",
    )
    with target(tmp_path, SIZE_BYTES, f"store={tmp_path / 'maps'}", file=wrong) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 4096, 0)
        failing.touch()
        with pytest.raises(nbd.Error, match="EIO"):
            handle.flush()
        wait_for(lambda: server.status()["error"] is not None, "word")
        assert "the disk fails" in server.status()["faults"]["commit"]


def test_a_block_that_can_not_be_read_is_no_trouble_once_the_guest_has_written_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(source_bytes(SIZE_BYTES))
    faulty = ["--filter=error", "file", str(path), "error-pread=EIO", "error-pread-rate=100%"]
    with nbdkit(tmp_path, "source", faulty) as source, proxy(tmp_path, source) as server:
        wait_for(lambda: server.status()["faults"]["copy"], "word")
        server.connect().pwrite(bytes(SIZE_BYTES), 0)
        server.wait()
        assert server.status()["faults"]["copy"] is None


def test_a_fetch_that_a_complete_disk_does_not_wait_for_is_no_trouble(tmp_path: Path) -> None:
    path, last = tmp_path / "disk.img", 64 << 10
    path.write_bytes(source_bytes(SIZE_BYTES))
    plain = ["--no-sr", "file", str(path)]  # else it would be asked for its holes first
    with nbdkit(tmp_path, "source", plain) as source:
        with proxy(tmp_path, source, "background=off", "readahead=0") as server:
            guest = server.connect()
            guest.pwrite(bytes(SIZE_BYTES - last), last)
            source.process.send_signal(signal.SIGSTOP)
            try:
                server.control.call("set", background="on")
                wait_for(lambda: server.status()["in_flight_bytes"], "the last of it, on its way")
                guest.pwrite(bytes(last), 0)
                server.wait()
            finally:
                source.process.send_signal(signal.SIGCONT)
            assert server.status()["faults"]["copy"] is None
