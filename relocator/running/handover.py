"""How authority over a disk moves from site to site.

At the source: `epoch` begins the dirty map anew, while writes go on; `seal` drains the writes in
progress, makes all durable and lets no further one pass, and its token names the content that was
frozen; `moved` says that it has been gone on from, `withdrawn` undoes it. A seal that another site
asked for is undone by that site's word only, or by force: then there are two versions of the disk,
and the other site is told so at the next contact. At the destination: a copy notes what it was
taken from (its *base*: id, epoch, seal), and takes the disk over (see activation.py).

    standby:  epoch e at the source; copy ahead (pre-seed); reads pass through
    activate: seal -> dirty since e -> drop those blocks -> durable -> active -> moved
    return:   a sealed disk whose seal is its successor's base takes back only what diverged there

State changes are the lifecycle's. `_epochs` lets one epoch begin at a time and guards `_ended`.
"""

import threading
import time
from typing import Any

from relocator.errors import StateError
from relocator.running.activation import Activation
from relocator.running.parts import Parts
from relocator.source.measure import measure
from relocator.source.remote import Source
from relocator.source.verify import compare
from relocator.store import runs
from relocator.store.meta import Meta
from relocator.store.store import UNRECORDED


class Handover:
    """The verbs that move authority over one disk."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._lifecycle = parts.lifecycle
        self._parts = parts
        self._epochs = threading.Lock()
        self._ended: tuple[int, bytes] | None = None
        endpoint = parts.settings.endpoint
        self._source = None if endpoint is None else Source(endpoint)
        self.activation = Activation(parts, self._source)

    @property
    def source_is_ours(self) -> bool:
        """Whether the source was found to be a relocator when the copy began."""
        return self._store.meta.base is not None

    @property
    def copies_ahead(self) -> bool:
        """Whether something may be copied before the disk is taken over."""
        return self.activation.rounds is not None

    def identify(self) -> dict[str, Any]:
        """Who this disk is."""
        meta = self._store.meta
        return {
            "id": meta.id,
            "epoch": meta.epoch,
            "seal": meta.seal,
            "asked": meta.asked,
            "moved": meta.moved,
            "complete": meta.complete,
            "kept": self._store.directory is not None,
            "outdated": meta.outdated,
            "withdrawn": _withdrawn(meta),
            "base": None if meta.base is None else vars(meta.base),
            "group_bytes": self._parts.heat.group_bytes,
            "block_bytes": meta.block_bytes,
            "digests": "blake2b-256",
            "time_s": time.time(),
        }

    def epoch(self, known: int | None = None) -> tuple[dict[str, Any], bytes]:
        """Begin the dirty map anew; who this disk is then, and what the map was (packed).

        `known` is the epoch that the caller has noted. If the next one has begun already, and
        nothing but its answer was lost, this is that answer. If nothing was written in the epoch
        that is known, it goes on. So does that of a sealed disk, whose map says too much for who
        comes now; who had an earlier one is told that all may be stale.
        """
        with self._epochs:
            if known is None or self._ended is None or self._ended[0] != known + 1:
                epoch, ended = self._lifecycle.begin_epoch(known)
                packed = self.all_blocks() if ended is None else runs.pack(ended)
                if ended is not None and epoch != known:
                    self._ended = epoch, packed
            else:
                epoch, packed = self._ended
        return {**self.identify(), "epoch": epoch}, packed

    def all_blocks(self) -> bytes:
        """The whole disk (packed)."""
        total = self._store.geometry.total_blocks
        return runs.pack_runs([(0, total)], total)

    def ended(self) -> dict[str, bytes]:
        """What was dirty in the epoch before this one (packed), if that is still known."""
        with self._epochs:
            known = self._ended is not None and self._ended[0] == self._store.meta.epoch
            return {"ended": self._ended[1]} if known and self._ended is not None else {}

    def seal(self, token: str | None = None, *, asked: bool = False) -> dict[str, Any]:
        """Let no write pass from here on; all that were acknowledged are durable."""
        self._lifecycle.seal(token, asked=asked)
        return self.identify()

    def moved(self, token: str | None) -> dict[str, Any]:
        """The proxy that took this disk over by the seal `token` is active."""
        self._lifecycle.note_moved(token)
        return self.identify()

    def withdrawn(self, token: str) -> dict[str, Any]:
        """The proxy that made the seal `token` has given the disk back without having written."""
        unsealed = self._lifecycle.note_withdrawn(token)
        return {**self.identify(), "unsealed": unsealed}

    def unseal(self, *, force: bool = False) -> dict[str, Any]:
        """Undo a seal; `was_asked` and `was_moved` say what was known of the proxy.

        Raises:
            StateError: a proxy may have accepted writes already, and it is not done by force.
        """
        known = self._lifecycle.unseal(force=force)
        return {**self.identify(), **{f"was_{name}": value for name, value in known.items()}}

    def measure(self) -> dict[str, Any]:
        """What the way to the source is like; takes some seconds, and bandwidth.

        Raises:
            StateError: there is no source.
            UpstreamError: it can't be read.
        """
        if self._source is None:
            raise StateError("'measure' needs a source")
        return measure(self._source.endpoint)

    def verify(self) -> dict[str, Any]:
        """Compare every block that was fetched and never written here with the source.

        Raises:
            StateError: blocks differ, none can be compared, or the source is not a relocator.
            UpstreamError: the source can't be read.
        """
        if self._source is None or not self.source_is_ours:
            raise StateError("'verify' needs a source that is a relocator")
        if self._store.meta.unrecorded:
            raise StateError(f"'verify' has nothing to compare: {UNRECORDED}")
        return compare(self._store, self._source)


def _withdrawn(meta: Meta) -> str | None:
    """The seal that this proxy has given back and whose source may not know it yet."""
    takeover = meta.takeover
    return takeover.token if takeover is not None and takeover.withdrawn else None
