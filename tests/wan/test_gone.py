"""A client that goes without a word, as one that loses power does."""

import signal
import subprocess
from pathlib import Path

from relocator.source import key
from tests.support.link import SOURCE_ADDRESS, Link, clocks
from tests.support.model import source_bytes
from tests.support.servers import mistaken, plugin, wait_for

PORT = 10809
#: the five minutes are three seconds
_HASTY = """
import socket
from relocator.source import sockets

sockets._ALIVE = {socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 2}
"""


def test_a_source_ends_though_its_proxy_went_without_a_word(link: Link, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(1 << 20))
    key.make(tmp_path / "key")
    secret = f"key={tmp_path / 'key'}"
    file = mistaken(tmp_path, _HASTY)
    argv = ["nbdkit", "-f", "-t", "1", "-i", SOURCE_ADDRESS, "-p", str(PORT), "python", str(file)]
    argv += [f"disk={tmp_path / 'disk.img'}", secret]
    source = subprocess.Popen([*link.within(link.source), *argv])
    try:
        wait_for(lambda: link.listens(PORT), "the source")
        keys = (f"store={tmp_path / 'store'}", f"source=nbd://{SOURCE_ADDRESS}:{PORT}", secret)
        keys += ("mode=standby", "background=off")
        within = link.within(link.proxy)
        with plugin(tmp_path, "proxy", *keys, within=within) as proxy:
            wait_for(lambda: proxy.status()["source_connected"], "both connections")
            here = link.within(link.source)
            # for demand, for the copy, and ready for the handover: a seal, and the word after it
            wait_for(lambda: clocks(PORT, here) == ["keepalive"] * 4, "nothing on its way")
            link.cut()
            proxy.kill()
        source.send_signal(signal.SIGTERM)
        assert source.wait(30) == 0
    finally:
        source.kill()
        source.wait()
