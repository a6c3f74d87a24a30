"""Graduation: a complete disk is handed to a plain server, which knows nothing of maps.

Complete means that every block is in the image, so the image alone is the disk and any server may
serve it. But nothing records writes from then on. So meta.json says *graduated* before the plain
server starts, and an engine that opens the store later takes every block for written since the
epoch: what was pre-seeded elsewhere is dropped, a return trip takes back everything. A superset of
what was written is always safe (store.py).

Graduating begins with the locks of store and image: whoever held them has ended, and with it every
write. The plain server inherits them (`lock_fds`), so they last as long as somebody serves the
disk. A sealed disk has moved on and doesn't graduate.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from relocator import __version__
from relocator.errors import StateError
from relocator.running.latency import Histogram
from relocator.running.parts import PARTS
from relocator.running.rounds import NO_ROUNDS
from relocator.running.states import Role, State
from relocator.running.status import check_cells
from relocator.store import meta as metadata
from relocator.store.image import Image
from relocator.store.meta import Meta
from relocator.store.opening import check_disk, open_image, take_lock

_REFUSAL = (
    "'{verb}' is refused: the disk has graduated, and what serves it now records no writes; "
    "stop it and start the proxy without --graduate"
)
_NO_PROOF = (
    "'verify' is refused: the disk has graduated, and since then nothing records which blocks are "
    "still as they were fetched; compare before it does, by a proxy without --graduate"
)


@dataclass(frozen=True)
class Graduated:
    """A graduated disk, held by its locks."""

    meta: Meta
    image: Image
    lock_fds: tuple[int, ...]

    @property
    def exceeds(self) -> bool:
        """Whether the image is longer than the disk."""
        return self.image.size_bytes > self.meta.size_bytes

    def call(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer a verb of the control socket: what can be said without an engine.

        Raises:
            StateError: the verb needs an engine.
        """
        if verb in ("status", "wait"):
            return self.status()
        if verb == "activate":
            return {**self.status(), "already_active": True}
        if verb == "map":
            cells = min(check_cells(arguments.get("cells", 1)), self._total_blocks)
            return {**self.status(), "map": {"present": [1.0] * cells, "dirty": [1.0] * cells}}
        raise StateError(_NO_PROOF if verb == "verify" else _REFUSAL.format(verb=verb))

    def status(self) -> dict[str, Any]:
        """The status object; nothing is counted any more."""
        kinds = ("read_present", "read_absent", "write")
        counters = ("on_demand_bytes", "background_bytes", "hole_bytes", "skipped_bytes")
        seeds = ("seeded_bytes", "digest_bytes", "digested_bytes")
        return {
            "version": __version__,
            "role": Role.TARGET.value,
            "state": State.COMPLETE.value,
            "graduated": True,
            "id": self.meta.id,
            "epoch": self.meta.epoch,
            "size_bytes": self.meta.size_bytes,
            "source": self.meta.source,
            "source_connected": False,
            "source_silent_s": 0.0,
            "source_connections": 0,
            "source_offers": None,
            "block_bytes": self.meta.block_bytes,
            "total_blocks": self._total_blocks,
            "present_blocks": self._total_blocks,
            "dirty_blocks": self._total_blocks,
            "diverged": True,
            **dict.fromkeys((*counters, *seeds), 0),
            "seeding": "off",
            "seeding_s": 0.0,
            "notes": ["graduated: requests are no longer counted, nor is what they write recorded"],
            "known": [],
            "background": "off",
            "order": "",
            "rate_bits_per_s": 0.0,
            "rate_cap_bits_per_s": None,
            "next_rate_cap": None,
            "rate_group": None,
            "rate_group_members": 0,
            "finish_by_s": None,
            "late_s": None,
            "window_bytes": 0,
            "in_flight_bytes": 0,
            "eta_s": 0.0,
            "error": None,
            "faults": dict.fromkeys(PARTS),
            **NO_ROUNDS,
            "held": False,
            "asks_for": None,
            "seal_confirmed": True,
            "dropped_blocks": 0,
            "brought_bytes": 0,
            "image": str(self.image.path),
            "file_system": self.image.file_system,
            "free_bytes": self.image.free_bytes,
            "unallocated_bytes": max(0, self.image.size_bytes - self.image.allocated_bytes),
            **dict.fromkeys(("seal_s", "drop_s", "first_read_at_s", "first_write_at_s")),
            "write_waited_s": 0.0,
            "requests": {kind: Histogram().as_dict() for kind in kinds},
        }

    @property
    def _total_blocks(self) -> int:
        return -(-self.meta.size_bytes // self.meta.block_bytes)


def may_graduate(meta: Meta | None) -> bool:
    """Whether all of the disk is here, is the newest version, and has not moved on."""
    if meta is None or meta.creating or meta.outdated:
        return False
    return meta.complete and meta.seal is None


def graduate(directory: Path, disk: Path | None) -> Graduated | None:
    """Take over the store at `directory` and note that it has graduated; None if it may not.

    `disk` is where its image was said to be, if that was said.

    Raises:
        ConfigError: the store is in use or damaged, or its image is elsewhere.
    """
    found = metadata.read(directory)
    if found is None or not may_graduate(found):
        return None
    if disk is not None:
        check_disk(directory, found, disk)
    lock_fd = take_lock(directory)
    image: Image | None = None
    try:
        meta = metadata.read(directory)
        if meta is None or not may_graduate(meta):  # it was sealed at the last moment
            os.close(lock_fd)
            return None
        image = open_image(directory, meta)
        if not meta.graduated:
            meta = replace(meta, graduated=True, clean=False, written_ns=None)
            metadata.write(directory, meta)
    except BaseException:
        if image is not None:
            image.close()  # whoever serves the disk now locks it, too
        os.close(lock_fd)
        raise
    return Graduated(meta, image, (lock_fd, image.fileno()))
