"""A source that doesn't tell what is written there: nothing that came before the switch is certain.

Nothing is copied ahead of it, then; what is here all the same, since an activation came to nothing,
is dropped once the source stands still. See sealing.py for the same of a relocator, and recorded.py
of a QEMU with a dirty bitmap.
"""

from collections.abc import Callable
from typing import Any

from relocator.running.parts import Transfer
from relocator.store.store import Store


class Unrecorded:
    """What an activation asks of such a source, and what follows from it here."""

    #: what an operator should know
    notes: tuple[str, ...] = ()
    brought_bytes = dropped_blocks = 0

    def __init__(self, store: Store, transfer: Transfer) -> None:
        self._store = store
        self._transfer = transfer

    def prepare(self, _token: str) -> None:
        """Nothing is asked."""

    def unprepare(self) -> None:
        """Nothing was made ready."""

    def ask(self, _token: str, _pause: Callable[[float], None]) -> None:
        """It can't be sealed."""

    def settle(self) -> dict[str, Any]:
        """Drop all that is here; nothing is known of the source, as changes of `Meta`."""
        if self._transfer.upstream.was_lost:
            self._transfer.renew()  # who answered since need not be who is at the address now
        self._transfer.hydration.disown_fetches()
        self.dropped_blocks = self._store.drop([(0, self._store.geometry.total_blocks)])
        return {}

    def join(self) -> None:
        """Nothing is stored by a thread of this."""
