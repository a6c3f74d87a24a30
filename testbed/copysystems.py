"""The systems that copybench has beside the evaluation's (testbed/systems)."""

import time

from testbed.hosts import services
from testbed.systems.base import EVERYWHERE, System
from testbed.systems.nbdkit import CopyOnWrite
from testbed.systems.qemu import Stream
from testbed.systems.relocator import Relocator

LOCAL_S = 10.0  # how long the clients of a disk that is here are watched
STANDBY_S = 30.0  # and those of one at the source, while a proxy stands by


class Local(System):
    """No relocation: the same clients on a disk that is already at the destination."""

    name = "local"

    def start_source(self) -> None:
        """There is none."""

    def prepare(self) -> None:
        command = services.file_command(self.place.image, EVERYWHERE, services.PORT)
        self.place.at_destination("local", command)

    def copy(self) -> None:
        time.sleep(LOCAL_S)


class Bulk(System):
    """nbdcopy to nowhere: the disk moves, and nobody can use it meanwhile."""

    name = "nbdcopy"

    def prepare(self) -> None:
        """nbdcopy serves nothing."""

    def copy(self) -> None:
        self.place.run_at_destination(["nbdcopy", self.source_uri, "null:"])


class Standby(Relocator):
    """The guest is at the source; a proxy stands by and copies nothing."""

    name = "standby"

    @property
    def serves_at(self) -> str:
        return "st_src-lan"

    def hand_over(self) -> None:
        """The guest stays."""

    def copy(self) -> None:
        time.sleep(STANDBY_S)


class Ahead(Standby):
    """The same, and the proxy copies ahead and keeps in step, in rounds."""

    name = "ahead"
    in_rounds = True

    def copy(self) -> None:
        self._client.call("set", background="on")
        super().copy()


#: name -> system and its settings
SYSTEMS: dict[str, tuple[type[System], dict[str, str]]] = {
    "local": (Local, {}),
    "nbdcopy": (Bulk, {}),
    "nbdkit-cow": (CopyOnWrite, {"extents": "yes"}),
    "nbdkit-cow-all": (CopyOnWrite, {}),
    "qemu": (Stream, {}),
    "relocator": (Relocator, {}),
    "relocator-file": (Relocator, {"source": "file"}),
    "standby": (Standby, {}),
    "ahead": (Ahead, {}),
}
