"""The relocator itself: our target at the source, our proxy at the destination.

Settings are the plugin's own keys (with `activate-on-write=yes` nobody says when the guest moves),
and five of the evaluation's: `source=file` has `nbdkit file` as the source's server;
`congestion=NAME` gives the target's connections a congestion control, as its command does;
`preseed=yes` copies ahead before the move, once; `preseed=rounds` keeps in step until it, and has
the seal bring the rest; `return=yes` makes the destination a site that the disk once came from,
with what it held then; `seed=5%` gives it a template, the disk as it was made with so many of its
pieces of 4 KiB changed. A trace that an order names (`order=trace:NAME`) is a file
that was shipped into the lab (`--file`).
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relocator.client import Client
from relocator.store.sparse import data_runs
from testbed.hosts import services
from testbed.hosts.supervise import ProcessError, Supervisor, run
from testbed.network.wan import parse_fraction
from testbed.systems.base import COPY_LIMIT_S, EVERYWHERE, System

PASSED_ON = (
    *("order", "pull-forward", "readahead", "skip-free", "block"),
    *("window", "rate", "connections", "demand", "activate-on-write", "ssh-options"),
)
PIECE_BYTES = 4096


class Relocator(System):
    """On-demand and background copy, in the settings' order."""

    name = "relocator"
    _armed = False  # then writes are held until the guest has arrived
    keys = frozenset((*PASSED_ON, "source", "congestion", "preseed", "return", "seed"))

    @property
    def store(self) -> Path:
        return self.place.work / "store"

    @property
    def image(self) -> Path:
        return self._image if self._returns else self.store / "disk.img"

    @property
    def _image(self) -> Path:
        """The image that the destination kept from the time when the disk was there."""
        return self.place.work / "kept.img"

    @property
    def _control(self) -> Path:
        return self.place.work / "proxy.sock"

    @property
    def _returns(self) -> bool:
        return self.settings.get("return") == "yes"

    @property
    def copies_ahead(self) -> bool:
        return self._returns or self._preseeds

    @property
    def _preseeds(self) -> bool:
        return self.settings.get("preseed", "no") != "no"

    @property
    def in_rounds(self) -> bool:
        return self.settings.get("preseed") == "rounds"

    @property
    def _template(self) -> Path:
        """The image that the destination has, of the same origin as the disk."""
        return self.place.work / "template.img"

    def start_source(self) -> None:
        if "seed" in self.settings:
            share = parse_fraction("seed", self.settings["seed"])
            make_template(self.place.image, self._template, share)
        if self.settings.get("source") == "file":
            super().start_source()
            return
        control = self.place.work / "target.sock"
        command = services.target_command(self.place.image, control, EVERYWHERE)
        if "congestion" in self.settings:
            congestion = self.settings["congestion"]
            command = services.target_by_command(self.place.image, control, EVERYWHERE, congestion)
        if self._returns:
            command = services.store_command(self._send_away(), control, EVERYWHERE)
        self.source = self.place.at_source("source", command)

    def _send_away(self) -> Path:
        """The disk's way to where it is now, in fast motion, as if it had begun at the destination;
        returns the store it went to."""
        work, away = self.place.work, self.place.work / "away"
        self.place.image.rename(self._image)
        socket, control = work / "old.nbd", work / "old.sock"
        nbdkit = ["nbdkit", "-f", "-t", "1", "-U"]
        plugin = ["python", str(services.PLUGIN)]
        old = [*nbdkit, str(socket), *plugin, f"disk={self._image}", f"store={self.store}"]
        new = [*nbdkit, str(work / "new.nbd"), *plugin, f"store={away}", "readahead=0"]
        new += [f"source=nbd+unix:///?socket={socket}", f"control={control}"]
        with Supervisor(self.place.servers.logs) as servers:
            started = servers.start("old-target", old)
            started.wait_until(socket.exists, "the old target's socket")
            servers.start("old-proxy", new).wait_until(control.exists, "the old proxy's control")
            Client(control).call("wait", patience_s=None, timeout_s=COPY_LIMIT_S)
        self.place.image.hardlink_to(away / "disk.img")
        return away

    def prepare(self) -> None:
        settings = self.settings
        if "order" in settings:
            shipped = f"trace:{os.environ.get('LAB_FILES', '.')}/"
            settings = settings | {"order": settings["order"].replace("trace:", shipped)}
        keys = [f"{key}={settings[key]}" for key in PASSED_ON if key in settings]
        keys += ["mode=standby", f"background={'on' if self._preseeds else 'off'}"]
        keys += [] if self.in_rounds else ["refresh=off", "seal-brings=0"]
        keys += [f"seed={self._template}"] if "seed" in settings else []
        keys += [f"disk={self._image}"] if self._returns else []
        command = services.proxy_command(
            self.store, self.source_uri, self._control, EVERYWHERE, keys
        )
        self.place.at_destination("proxy", command)
        self._client = Client(self._control)
        if self._preseeds:
            self._wait_until_seeded()

    def _wait_until_seeded(self) -> None:
        if self.in_rounds:
            self._wait(lambda status: status["rounds"] > 1)
            return
        self._wait(lambda status: status["present_blocks"] == status["total_blocks"])
        self._client.call("set", background="off")

    def _wait(self, ready: Callable[[dict[str, Any]], bool]) -> None:
        """Until the copy ahead is so far."""
        deadline_s = time.monotonic() + COPY_LIMIT_S
        while not ready(status := self._client.call("status")):
            if time.monotonic() > deadline_s:
                raise ProcessError(f"not copied ahead after {COPY_LIMIT_S:g} s: {status}")
            time.sleep(0.02)

    @property
    def _told(self) -> bool:
        """Whether the proxy is told when the guest moves."""
        return self.settings.get("activate-on-write") != "yes"

    def arm(self) -> None:
        """A last round, and the intent made durable: the guest need not stand still for either."""
        if self.in_rounds:
            self._client.call("refresh")
            self._wait(lambda status: status["present_blocks"] == status["total_blocks"])
        if self._told:
            self._client.call("activate", hold=True, seal=False)
            self._armed = True
            self._client.connect()

    def hand_over(self) -> None:
        if self._told:
            self._client.call("activate", hold=self._armed, status=False)

    def arrived(self) -> None:
        if self._told:
            self._client.call("release")

    def copy(self) -> None:
        if self._client.call("status")["state"] != "complete":  # the guest may have read it all
            self._client.call("set", background="on")
            self._client.call("wait", patience_s=None, timeout_s=COPY_LIMIT_S)

    def status(self) -> dict[str, Any]:
        return self._client.call("status")


def make_template(image: Path, path: Path, share: float) -> None:
    """A copy of an image in which a share of the pieces of 4 KiB that hold data has changed."""
    run(["cp", "--sparse=always", str(image), str(path)])
    choose = random.Random(1)
    with path.open("r+b", buffering=0) as file:
        for start, end, is_data in data_runs(file.fileno(), 0, path.stat().st_size):
            for at in range(start, end, PIECE_BYTES) if is_data else ():
                if choose.random() < share:
                    os.pwrite(file.fileno(), choose.randbytes(PIECE_BYTES), at)
