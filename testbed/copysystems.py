"""The systems that copybench has beside the evaluation's (testbed/systems)."""

import getpass
import shlex
import time

from testbed.hosts import services, ssh
from testbed.network.topology import ADDRESS
from testbed.systems.base import EVERYWHERE, Place, System
from testbed.systems.nbdkit import CopyOnWrite
from testbed.systems.qemu import Stream
from testbed.systems.relocator import Relocator

SSH_PORT = 2222
SSH_OPEN_S = 10.0  # until a standby's ssh connections are open: their keys take the lab's CPU long
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


def start_sshd(place: Place) -> str:
    """An sshd at the source that the destination knows; returns ssh's options."""
    options = ssh.keys(place.work)
    ssh.known(place.work, ADDRESS["st_src-wan"], SSH_PORT)
    place.at_source("sshd", ssh.sshd_command(place.work, EVERYWHERE, SSH_PORT), SSH_PORT)
    return options


class Ssh(Bulk):
    """`ssh -C` to nowhere: the same with the image as a file, compressed."""

    name = "ssh"

    def start_source(self) -> None:
        self._options = start_sshd(self.place)

    def copy(self) -> None:
        words = ["ssh", "-C", *shlex.split(self._options), "-p", str(SSH_PORT)]
        words += ["-l", getpass.getuser(), ADDRESS["st_src-wan"], "cat", str(self.place.image)]
        self.place.run_at_destination(["sh", "-c", f"exec {shlex.join(words)} >/dev/null"])


class RelocatorSsh(Relocator):
    """The relocator whose connections an ssh carries, which compresses."""

    name = "relocator-ssh"

    @property
    def source_uri(self) -> str:
        where = f"{getpass.getuser()}@{ADDRESS['st_src-wan']}:{SSH_PORT}"
        return f"ssh://{where}/?port={services.PORT}"

    def start_source(self) -> None:
        super().start_source()
        self.settings = self.settings | {"ssh-options": start_sshd(self.place)}

    def prepare(self) -> None:
        super().prepare()
        time.sleep(SSH_OPEN_S)


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
    "ssh": (Ssh, {}),
    "nbdkit-cow": (CopyOnWrite, {"extents": "yes"}),
    "nbdkit-cow-all": (CopyOnWrite, {}),
    "qemu": (Stream, {}),
    "relocator": (Relocator, {}),
    "relocator-file": (Relocator, {"source": "file"}),
    "relocator-ssh": (RelocatorSsh, {}),
    "standby": (Standby, {}),
    "ahead": (Ahead, {}),
}
