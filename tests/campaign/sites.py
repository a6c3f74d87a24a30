"""The sites of a world: each has a store, a server, and a place in the network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relocator.client import Client
from relocator.errors import RelocatorError
from testbed.hosts.services import key_file
from testbed.network.topology import ADDRESS, Sites
from tests.campaign.server import Server
from tests.campaign.storage import Storage
from tests.campaign.world import World

#: site -> its host, its interface to the WAN, its port
PLACES = {
    "A": ("st_src", "st_src-wan", 10809),
    "B": ("st_dst", "st_dst-wan", 10809),
    "C": ("st_src", "st_src-wan", 10811),
}
LOOK_S = 1.0
PSK = "campaign:" + "5a" * 16 + "\n"


class Site:
    """A site of a running world."""

    def __init__(
        self, name: str, world: World, storage: Storage, network: Sites, plugin: Path
    ) -> None:
        self.name = name
        self.world = world
        host, interface, self.port = PLACES[name]
        self.host_pid = network.pids[host]
        self.address = ADDRESS[interface]
        self.directory = directory = storage.path.parent
        self.storage = storage
        self._plugin = plugin
        buffer = world.send_buffer_bytes
        self.server = Server(name, directory, self.host_pid, self._argv, buffer)
        #: where the disk was taken from, or is to be taken from
        self.source: Site | None = None
        #: until then (of the journal) nobody may count on what the store does
        self.store_fails_until_s = 0.0

    @property
    def _disk(self) -> Path:
        return self.storage.path / "disk.img"

    @property
    def _store(self) -> Path:
        return self.storage.path / ("maps" if self.name == "A" else "store")

    @property
    def image(self) -> Path:
        """The image, wherever it is."""
        return self._disk if self.name == "A" else self._store / "disk.img"

    @property
    def is_proxy(self) -> bool:
        """Whether its server takes the disk from another one, or has."""
        return self.source is not None

    @property
    def has_begun(self) -> bool:
        """Whether a server has ever run here."""
        return self.name == "A" or self.source is not None

    @property
    def meta(self) -> Path:
        """What its store says of itself."""
        return self._store / "meta.json"

    def impostor(self, disk: Path) -> Server:
        """The server of another disk, at this site's address; not started."""
        buffer = self.world.send_buffer_bytes

        def argv() -> Sequence[str]:
            keys = [f"disk={disk}", f"store={disk}.maps", f"block={self.world.block_bytes}"]
            return self._nbdkit(server, "1", keys)

        server = Server(f"impostor-{self.name}", self.directory, self.host_pid, argv, buffer)
        return server

    def _nbdkit(self, server: Server, threads: str, keys: Sequence[str]) -> Sequence[str]:
        argv = ["nbdkit", "-f", "-t", threads, "-i", self.address, "-p", str(self.port)]
        if self.world.tls:
            psk = self.directory / "psk"
            psk.write_text(PSK)
            argv += ["--tls=on", f"--tls-psk={psk}"]
        known = [f"control={server.control}", f"key={key_file()}"]
        return [*argv, "python", str(self._plugin), *known, *keys]

    def _argv(self) -> Sequence[str]:
        careful = not self.is_proxy and self.world.planted != "target-threads"
        threads = "1" if careful else "8"  # see docs/operators.md, "nbdkit aborts"
        keys = [f"store={self._store}", *([f"disk={self._disk}"] if self.name == "A" else [])]
        if self.source is None:
            keys += [f"block={self.world.block_bytes}"]
        else:
            keys += [f"source={self.source.uri}", "mode=standby", *self.world.keys]
            if self.world.tls:
                keys += [f"tls-psk={self.directory}/psk"]
            if self.world.seeded:
                keys += [f"seed={self.directory.parent}/seed.img", "seed-rate=100M"]
        return self._nbdkit(self.server, threads, keys)

    @property
    def uri(self) -> str:
        """How the other sites reach it."""
        where = f"{self.address}:{self.port}"
        return f"nbds://campaign@{where}" if self.world.tls else f"nbd://{where}"

    def status(self) -> dict[str, Any] | None:
        """Its status; None if it doesn't answer soon."""
        if not self.server.running:
            return None
        try:
            return Client(self.server.control).call("status", LOOK_S)
        except RelocatorError:
            return None
