"""What a scripted migration asks of a system, in the order in which it asks.

    start_source   the server that the guest's disk is on while the guest is at the source
    prepare        everything at the destination that can be ready before anybody decides to move
    copy_first     the move has begun: what must be copied before the guest may move (or nothing)
    arm            the guest is about to stop: what would otherwise be done while it stands still
    hand_over      the guest stands still between the sites: authority over the disk moves
    arrived        the guest runs at the destination
    copy           the guest runs at the destination: copy the rest; returns when nothing more is
                   needed from the source
    shut_off_source
    keep_image     the guest is done: leave the disk as a raw image at `image`

A system raises what goes wrong; nothing is retried. Its servers are started through
`place.servers` and ended there. It never touches the guest's device: it only says at which host
the guest finds its disk after the move (`serves_at`).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from testbed.hosts import services
from testbed.hosts.supervise import Process, Supervisor, run
from testbed.network.topology import ADDRESS, Sites

COPY_LIMIT_S = 3600.0
EVERYWHERE = "0.0.0.0"  # the guest comes by one subnet, the other site by another


@dataclass(frozen=True, slots=True)
class Place:
    """Where a system runs: the sites, the owner of its processes, the source's image, a directory
    for its files, the size of the disk."""

    servers: Supervisor
    sites: Sites
    work: Path
    image: Path
    size_bytes: int

    def at_source(self, name: str, argv: Sequence[str], port: int = services.PORT) -> Process:
        """Starts a server on the source's storage host, and waits until it listens."""
        return services.start_server(self.servers, name, argv, self.sites.pids["st_src"], port)

    def at_destination(self, name: str, argv: Sequence[str], port: int = services.PORT) -> Process:
        """Starts a server on the destination's storage host, and waits until it listens."""
        return services.start_server(self.servers, name, argv, self.sites.pids["st_dst"], port)

    def run_at_destination(self, argv: Sequence[str]) -> None:
        """Runs a command on the destination's storage host to its end."""
        run(argv, self.sites.pids["st_dst"], timeout_s=COPY_LIMIT_S)

    def program(self, name: str) -> str:
        """A program that was shipped into the lab (`--file`), or else the installed one."""
        shipped = Path(os.environ.get("LAB_FILES", ".")) / name
        if not shipped.is_file():
            return name
        shipped.chmod(0o755)
        return str(shipped)


class System:
    """A system and how far it is. Subclasses say what differs."""

    name: ClassVar[str]
    keys: ClassVar[frozenset[str]] = frozenset()
    programs: ClassVar[tuple[str, ...]] = ()  # those it needs that are not in the lab's image
    moves: ClassVar[bool] = True  # the guest goes to the destination
    relocates: ClassVar[bool] = True  # its disk goes there too
    copies_first: ClassVar[bool] = False  # much of it before the guest
    has_all: ClassVar[bool] = False  # the disk is there when the guest is
    lets_go: ClassVar[bool] = True  # when complete it has closed its connections to the source

    def __init__(self, settings: dict[str, str], place: Place) -> None:
        self.settings = settings
        self.place = place
        self.source: Process

    @property
    def source_uri(self) -> str:
        """The source's server as the destination's storage host sees it."""
        return f"nbd://{ADDRESS['st_src-wan']}:{services.PORT}"

    @property
    def serves_at(self) -> str:
        """The interface at which the guest finds its disk after the move."""
        return "st_dst-lan"

    @property
    def copies_ahead(self) -> bool:
        """Whether the destination holds blocks before the guest has stopped at the source."""
        return False

    @property
    def image(self) -> Path:
        """The raw image at the end."""
        return self.place.work / "moved.img"

    def start_source(self) -> None:
        image, port = self.place.image, services.PORT
        self.source = self.place.at_source("source", services.file_command(image, EVERYWHERE, port))

    def prepare(self) -> None:
        raise NotImplementedError

    def copy_first(self) -> None:
        """Nothing, unless the disk goes before the guest."""

    def arm(self) -> None:
        """Nothing, unless something can be made ready."""

    def hand_over(self) -> None:
        """Nothing, unless somebody must be told."""

    def arrived(self) -> None:
        """Nothing, unless somebody waits for that word."""

    def copy(self) -> None:
        """Nothing, unless the disk comes after the guest."""

    def shut_off_source(self) -> None:
        """The source's server ends; if something still holds on to it, as in a power failure."""
        servers = self.place.servers
        (servers.stop if self.lets_go else servers.cut_off)(self.source)

    def status(self) -> dict[str, Any] | None:
        """The relocator's status object, of a system that has one."""
        return None

    def keep_image(self, device: Path) -> None:
        """Nothing, if the image is already there; `device` is the guest's."""

    def serve_empty_image(self) -> None:
        """Serves `image` at the destination before anything has been copied into it."""
        with self.image.open("wb") as file:
            file.truncate(self.place.size_bytes)
        command = services.file_command(self.image, EVERYWHERE, services.PORT)
        self.place.at_destination("moved", command)

    def read_all(self, device: Path) -> None:
        """Copies the guest's device to `image`."""
        run(["dd", f"if={device}", f"of={self.image}", "bs=1M", "conv=sparse"])
