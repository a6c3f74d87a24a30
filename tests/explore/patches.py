"""Puts the explored world under the product's modules: threads, clock, network and syncs.

Only names that modules import are replaced, for as long as an exploration lasts; no line of the
product knows of it.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from types import ModuleType

from relocator.source import handles, incoming, remote
from relocator.store import bitmap, image, maps, meta, store
from tests.explore import network, threads
from tests.explore.site import ExploredEngine
from tests.explore.storage import Files, Moments, storing, written_as
from tests.explore.threads import Here, Kernel

_STAND_INS = {"threading": (threading, threads), "time": (time, threads)}


class Switchboard:
    """The run that the patched modules belong to at the moment."""

    network: network.Network

    @classmethod
    def connect(cls, *arguments: object, **options: object) -> network.Handle:
        return cls.network.connect(*arguments, **options)  # type: ignore[arg-type]


def begin(kernel: Kernel, net: network.Network, moments: Moments) -> None:
    """From now on the product's modules belong to this run."""
    Here.kernel, Switchboard.network = kernel, net
    Files.moments, Files.opened = moments, {}
    ExploredEngine.network = net


@contextmanager
def explored() -> Iterator[None]:
    """The product's modules see the explored world, and the real one again afterwards.

    What they write to their log is dropped: the same happens thousands of times.
    """
    before: list[tuple[ModuleType | type, str, object]] = []

    def put(module: ModuleType | type, name: str, value: object) -> None:
        before.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    for name, module in sorted(sys.modules.items()):
        if name.startswith("relocator."):
            for attribute, (real, fake) in _STAND_INS.items():
                if getattr(module, attribute, None) is real:
                    put(module, attribute, fake)
    files = Files()
    for module in (meta, maps, image):
        assert module.os is os
        put(module, "os", files)
    put(image.Image, "modified_ns", property(written_as))
    for owner, names in (
        (bitmap.Bitmap, ("set", "clear", "insert")),
        (image.Image, ("write", "zero")),
    ):
        for name in names:
            put(owner, name, storing(getattr(owner, name)))
    put(store, "boot_id", lambda: "0" * 36)  # after a power failure there is no live map at all
    for module in (handles, remote):
        put(module, "open_handle", Switchboard.connect)
    for module in (handles, incoming):
        put(module, "progress", network.progress)
    put(incoming, "hear_out", network.hang_up)
    put(remote, "end_later", list)  # nobody would see it
    put(remote, "is_quiet", network.is_quiet)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        for module, name, value in reversed(before):
            setattr(module, name, value)
