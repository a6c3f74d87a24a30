"""nbdkit's own filters over its nbd plugin, and nbdcopy through them to nowhere in the background.

Reads and writes of the guest are kept by the filter; nbdcopy then reads everything once, so that
everything is kept. Neither filter can be told that all is there: the connection to the source
stays, unused. nbdcopy reads holes too (`--no-extents`), or they would be asked of a source that is
off; with `extents=yes` it passes them over.
"""

from pathlib import Path
from typing import ClassVar

from testbed.hosts import services
from testbed.network.topology import ADDRESS
from testbed.systems.base import EVERYWHERE, System


class CopyOnWrite(System):
    """The `cow` filter with `cow-on-read`: an overlay that keeps what is read and written."""

    name = "nbdkit-cow"
    keys = frozenset({"extents"})
    lets_go = False
    filter: ClassVar[tuple[str, ...]] = ("cow", "cow-on-read=true")

    @property
    def _uri(self) -> str:
        return f"nbd://{ADDRESS['st_dst-lan']}:{services.PORT}"

    def prepare(self) -> None:
        command = services.relay_command(self.source_uri, EVERYWHERE, *self.filter)
        self.place.at_destination("moved", command)

    def copy(self) -> None:
        flags = [] if self.settings.get("extents") == "yes" else ["--no-extents"]
        self.place.run_at_destination(["nbdcopy", *flags, self._uri, "null:"])

    def keep_image(self, device: Path) -> None:
        # By the guest's connection: a new one would have to reach the source, which is off.
        self.read_all(device)


class Cache(CopyOnWrite):
    """The `cache` filter, keeping reads, never writing back."""

    name = "nbdkit-cache"
    filter = ("cache", "cache=unsafe", "cache-on-read=true")
