"""What one end's sudden death does to the other: nothing."""

import time
from pathlib import Path

import nbd
import pytest

from tests.support.model import source_bytes
from tests.support.servers import mistaken, plugin, wait_for

SIZE_BYTES = 8 << 20


def test_a_target_survives_proxies_that_are_killed_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    flags = ("-t", "1")  # as `relocator target` starts it
    with plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}", flags=flags) as target:
        for number in range(12):
            keys = (f"store={tmp_path / f'store{number}'}", f"source={target.uri}")
            with plugin(tmp_path, "proxy", *keys, "window=4M") as proxy:
                time.sleep(0.002 * number)
                proxy.kill()
            assert target.process.poll() is None, target.log.read_text()
        with plugin(
            tmp_path, "proxy", f"store={tmp_path / 'store3'}", f"source={target.uri}"
        ) as last:
            last.control.call("wait", timeout_s=60)
    assert (tmp_path / "store3" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_a_source_that_comes_back_as_another_disk_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    (tmp_path / "other.img").write_bytes(b"other" * 65536)
    with plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}") as target:
        keys = (f"store={tmp_path / 'store'}", f"source={target.uri}", "background=off")
        with plugin(tmp_path, "proxy", *keys, "readahead=0", "retry-timeout=1") as proxy:
            handle = proxy.connect()
            handle.pread(4096, 0)
            target.kill()
            with plugin(tmp_path, "target", f"disk={tmp_path / 'other.img'}"):
                with pytest.raises(nbd.Error, match="EIO"):
                    handle.pread(4096, 8192)
            assert proxy.control.call("status")["present_blocks"] == 1


def test_a_mistake_in_what_nobody_waits_for_is_told_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    wrong = mistaken(
        tmp_path,
        "from relocator.running import handover\n\n"
        "def mistaken(*_, **__):\n"
        "    raise LookupError('a mistake')\n\n"
        "handover.hints.ask = mistaken\n",
    )
    with plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}") as target:
        keys = (f"store={tmp_path / 'store'}", f"source={target.uri}", "rate=8M")
        with plugin(tmp_path, "proxy", *keys, file=wrong) as proxy:
            wait_for(lambda: "a mistake" in str(proxy.control.call("status")["error"]), "word")
            proxy.control.call("set", rate="none")
            proxy.control.call("wait", timeout_s=60)
            assert "Traceback" in proxy.log.read_text()
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_a_thread_that_dies_of_a_mistake_ends_the_server_and_not_the_data(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    wrong = mistaken(
        tmp_path,
        "import time\nfrom relocator.copying.copier import Copier\n\n"
        "def mistaken(self):\n"
        "    while not self._pacer.running:\n"
        "        time.sleep(0.3)\n"
        "    raise LookupError('a mistake')\n\n"
        "Copier._run = mistaken\n",
    )
    with plugin(tmp_path, "target", f"disk={tmp_path / 'disk.img'}") as target:
        keys = (f"store={tmp_path / 'store'}", f"source={target.uri}", "readahead=0")
        with plugin(tmp_path, "proxy", *keys, "background=off", file=wrong) as proxy:
            handle = proxy.connect()
            handle.pwrite(b"kept" * 1024, 4096)
            proxy.control.call("set", background="on")
            assert proxy.process.wait(20) == 1
            assert "a mistake" in proxy.log.read_text()
        with plugin(tmp_path, "proxy", *keys) as again:
            assert again.connect().pread(4096, 4096) == b"kept" * 1024
