"""What is still to come by the deadline: neither holes, nor only what was never copied."""

import time
from pathlib import Path

from tests.nbd.test_rest import SIZE_BYTES, Site, absent
from tests.nbd.test_rounds import standby
from tests.support.servers import Server, nbdkit, proxy, wait_for

#: of the hour until the deadline; the margin is left free
AIM_S = 3600 * 0.95
MIB = 1 << 20


def in_an_hour() -> str:
    return f"finish-by={time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(time.time() + 3600))}"


def bytes_planned(server: Server) -> float:
    """What the rate of now would bring by the deadline."""
    rate = server.status()["rate_cap_bits_per_s"]
    return 0.0 if rate is None else float(rate) / 8 * AIM_S


def test_holes_are_not_planned_for(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as disk:
        disk.truncate(3 << 30)  # more than is asked about ahead of the copy
        for at in range(8):
            disk.seek((at * 384 + 1) * MIB)
            disk.write(b"data" * (MIB // 4))
    with nbdkit(tmp_path, "source", ["file", str(image)]) as source:
        with proxy(tmp_path, source, in_an_hour()) as server:
            wait_for(lambda: server.status()["hole_bytes"] == (3 << 30) - 8 * MIB, "the holes")
            wait_for(lambda: 6 * MIB < bytes_planned(server) < 10 * MIB, "the rate for the rest")


def test_what_is_dirty_at_the_source_is_planned_for(tmp_path: Path) -> None:
    """Also before the first round, when nothing was dropped yet."""
    site = Site(tmp_path)
    with site.serve() as target, standby(tmp_path, target, "refresh=off") as server:
        wait_for(lambda: absent(server) == 0, "the copy ahead")
        key, _, value = in_an_hour().partition("=")
        server.control.call("set", **{key: value})
        wait_for(lambda: 0 < bytes_planned(server) < 4 * MIB, "the least rate that there is")
        site.write(target.connect(), 0, SIZE_BYTES // 4096)
        wait_for(lambda: bytes_planned(server) > 3.9 * MIB, "a rate for what was written")
        assert absent(server) == 0
        server.kill()
