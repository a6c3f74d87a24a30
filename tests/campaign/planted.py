"""Known bugs, put back: a campaign that doesn't find them proves nothing.

Each is a piece of Python that is run in the plugin, after it has been loaded; the product itself is
not touched. One is not ours: nbdkit 1.32 aborts (in `raw_send_socket`) if a client goes away while
several threads serve its connection, which is why a target is started with one thread.
"""

from pathlib import Path

from testbed.hosts.services import PLUGIN

BUGS = {
    "no-fdatasync": """
# A commit makes the map durable, not the data it speaks of.
from relocator.store.image import Image

Image.sync = lambda self: None
""",
    "bit-before-data": """
# A block that arrives is published before it is stored.
from relocator.copying.hydration import Hydration

_arrive = Hydration.arrive


def _early(self, claim, data, failure=None):
    if failure is None:
        with self._store.lock:
            for first, end in claim.owned():
                self._store.mark_present_locked(first, end)
    _arrive(self, claim, data, failure)


Hydration.arrive = _early
""",
    "seal-not-durable": """
# The seal is answered before it, and what was written until then, is durable.
from dataclasses import replace

from relocator.store.store import Store

_update = Store.update


def _later(self, **changes):
    if changes.get("seal"):
        self.meta = replace(self.meta, **changes)
    else:
        _update(self, **changes)


Store.update = _later
""",
    "unseal-while-active": """
# A seal is undone although the disk has moved.
from relocator.running.lifecycle import Lifecycle


def _unseal(self, **_):
    with self._lock:
        self._change_locked("unseal", seal=None, moved=False)
    return {}


Lifecycle.unseal = _unseal
""",
    "completion-fails-reads": """
# A read that waits for a lost source fails if the disk is completed by another connection.
from relocator.running.disk import Disk


def _through(self, buffer, offset, still):
    self._hydration.read_through(buffer, offset)
    return True


Disk._read_through = _through
""",
    "outside-unnoticed": """
# What something else wrote into an image passes for what the maps say of it.
from relocator.running import opening
from relocator.store import opening as of_store

opening.is_written_outside = of_store.is_written_outside = lambda meta, image: False
""",
    "any-disk": """
# A new connection to the source's address is believed, whichever disk is found there.
from relocator.source.identity import Guard

Guard.check = lambda self, handle: None
""",
    "target-threads": "",  # sites.py gives it more than one
}


def plugin(bug: str | None, directory: Path) -> Path:
    """The plugin's file: the product's own, or one in `directory` that puts the bug back."""
    if bug is None:
        return PLUGIN
    path = directory / "planted.py"
    path.write_text(PLUGIN.read_text().replace("__file__", repr(str(PLUGIN))) + BUGS[bug])
    return path
