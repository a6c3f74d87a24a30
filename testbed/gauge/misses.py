"""How long a request takes that waits for the source, over a link that is long and idle.

On a link of 200 ms what the processors do is some thousandth of a round trip: what is left is how
often a request crosses the link and back before it is answered. The background copy is off.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.copybench import STANDBY_ROUND_TRIPS
from testbed.copyclient import BLOCK_BYTES, offset_of
from testbed.copyimage import make_image
from testbed.gauge.pair import to_the_grid
from testbed.hosts import services
from testbed.hosts.supervise import Supervisor, in_namespace
from testbed.network import topology, wan
from testbed.network.topology import ADDRESS
from testbed.systems import Place
from testbed.systems.relocator import Relocator

LINK = wan.LinkProfile(0.200, 100_000_000)
DATA_BYTES = 8 << 20
LARGE_BYTES = 64 << 10
SEED = 1
COUNT = 6


def measure(work: Path) -> dict[str, Any]:
    """`rtt_s`, and {kind of request: seconds of each}."""
    image = work / "source.img"
    size_bytes = make_image(image, DATA_BYTES, SEED)
    (work / "logs").mkdir()
    with topology.sites(LINK) as sites, Supervisor(work / "logs") as supervisor:
        system = Relocator({}, Place(supervisor, sites, work, image, size_bytes))
        system.start_source()
        system.prepare()
        handle = in_namespace(sites.pids["st_dst"], lambda: _connected(system.serves_at))
        time.sleep(STANDBY_ROUND_TRIPS * LINK.rtt_s)
        seconds = {
            "standby_read": _timed(lambda at: handle.pread(BLOCK_BYTES, at), _places(0)),
            "activate": [_time(system.hand_over)],
            "first_write": [_time(lambda: handle.pwrite(bytes(BLOCK_BYTES), _places(1)[0]))],
            "miss": _timed(lambda at: handle.pread(BLOCK_BYTES, at), _places(2)),
            "large_miss": _timed(lambda at: handle.pread(LARGE_BYTES, at), _places(3)),
            "partial_write": _timed(lambda at: handle.pwrite(bytes(512), at), _places(4)),
            "absent_write": _timed(lambda at: handle.pwrite(bytes(BLOCK_BYTES), at), _places(5)),
        }
        handle.shutdown()
    return {"rtt_s": LINK.rtt_s, "seconds": seconds}


def _connected(interface: str) -> Any:
    import nbd

    handle = nbd.NBD()
    handle.connect_uri(f"nbd://{ADDRESS[interface]}:{services.PORT}")
    return handle


def _places(group: int) -> list[int]:
    """Offsets of pieces that no other group has, far from each other."""
    pieces = [group * COUNT + (5 * at) % COUNT for at in range(COUNT)]
    return [offset_of(2 * piece, DATA_BYTES, LARGE_BYTES) for piece in pieces]


def _timed(ask: Callable[[int], object], offsets: list[int]) -> list[float]:
    return [_time(lambda offset=offset: ask(offset)) for offset in offsets]


def _time(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    to_the_grid()
    start_s = time.monotonic()
    action()
    return time.monotonic() - start_s
