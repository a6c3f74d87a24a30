"""Three sites with a directory each, of which the first has a disk."""

import random
from pathlib import Path
from typing import Any

from tests.support.model import source_bytes
from tests.support.servers import Server, plugin

SIZE_BYTES = 4 << 20
BLOCK = 4096


class Site:
    """A directory per site, and the plugin run in it."""

    def __init__(self, tmp_path: Path, name: str) -> None:
        self.directory = tmp_path / name
        self.directory.mkdir()
        self.image = self.directory / "disk.img"

    def target(self) -> Any:
        """Serve this site's image, its maps kept beside it."""
        return plugin(self.directory, "target", f"disk={self.image}", f"store={self.maps}")

    def proxy(self, source: Server, *keys: str) -> Any:
        """Serve the disk from `source`, its image kept here."""
        wanted = (f"store={self.directory / 'store'}", f"source={source.uri}")
        return plugin(self.directory, "proxy", *wanted, *keys)

    @property
    def maps(self) -> Path:
        return self.directory / "maps"

    @property
    def copy(self) -> Path:
        return self.directory / "store" / "disk.img"


def three(directory: Path) -> tuple[Site, Site, Site]:
    """Sites a, b and c; the disk is at a."""
    made = tuple(Site(directory, name) for name in ("a", "b", "c"))
    made[0].image.write_bytes(source_bytes(SIZE_BYTES))
    return made


def reboot(maps: Path) -> None:
    """The host of a killed server has lost power: what was written has reached its disk, no bit."""
    live = maps / "map.live"
    content = live.read_bytes()
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()[:8]
    live.write_bytes(content.replace(boot, b"00000000", 1))


def scribble(handle: Any, model: bytearray, seed: int, count: int = 40) -> None:
    """Random writes of whole and broken blocks, to the disk and the model."""
    choose = random.Random(seed)
    for _ in range(count):
        length = choose.choice((100, BLOCK, 3 * BLOCK))
        offset = choose.randrange(SIZE_BYTES - length)
        data = choose.randbytes(length)
        handle.pwrite(data, offset)
        model[offset : offset + length] = data
